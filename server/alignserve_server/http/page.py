"""The page at `/`, which tries the API in a browser.

It is made of the files in the folder `page`, and calls the same endpoints as every other client.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alignserve_server.api import CallScope, MethodRules
from alignserve_server.http.answer import Answer, HeaderList
from alignserve_server.http.endpoint import Endpoint
from alignserve_server.http.plain import PLAIN
from alignserve_server.http.request import HttpRequest

_FOLDER = Path(__file__).parent / "page"
_INDEX = "index.html"
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_RULES = MethodRules(scopes=None, is_metered=False, is_traced=False)

# What the page may load and call: nothing of other servers, and nothing that is written in the page itself.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS: HeaderList = (
    ("content-security-policy", _POLICY),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-cache"),  # kept, but compared by its tag at each use: a new server has a new page
)


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file of the page, and how it is sent."""

    path: str
    content: bytes
    media_type: str

    @property
    def tag(self) -> str:
        """Its entity tag, which changes with its content."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:20]}"'

    def endpoint(self) -> Endpoint:
        """Returns the endpoint that serves it, which needs no key."""
        headers = (*_HEADERS, ("etag", self.tag))
        whole = Answer(self.content, 200, self.media_type, headers)
        unchanged = Answer(b"", 304, None, headers)

        async def answer(request: HttpRequest, _: CallScope) -> Answer:
            # A proxy that compresses makes the tag a weak one: W/"…".
            return unchanged if self.tag in request.headers.get("if-none-match", "") else whole

        return Endpoint(self.path, ("GET",), PLAIN, "page", _RULES, answer)


def page_endpoints() -> Iterator[Endpoint]:
    """Yields the endpoints of the page: its text at `/`, and what it needs below `/page/`."""
    for file in sorted(_FOLDER.iterdir()):
        path = "/" if file.name == _INDEX else f"/page/{file.name}"
        yield PageFile(path, file.read_bytes(), _MEDIA_TYPES[file.suffix]).endpoint()
