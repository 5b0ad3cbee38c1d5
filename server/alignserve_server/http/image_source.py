"""Images within JSON: base64, by itself or in a data URI (RFC 2397). Images by URL are not fetched."""

from __future__ import annotations

import re

from alignserve_server.errors import ImageUnreadable, InvalidArgument
from alignserve_server.http.base64_text import decode_base64
from alignserve_server.http.json_fields import shown

_ESCAPES = (("%2B", "+"), ("%2b", "+"), ("%2F", "/"), ("%2f", "/"), ("%3D", "="), ("%3d", "="))
_BLANKS = b" \t\r\n\f\v"
# A match holds the GIL: 15 MB of blanks would take it a third of a second.
_LEADING_BLANKS = r"\s{0,100}"
_HEAD = re.compile(_LEADING_BLANKS + r"data:([^,]{0,1000}),", re.IGNORECASE)
# A comma after `data:` is common in prose. These are the registered top-level types.
_MEDIA_TYPE = re.compile(
    r"(application|audio|example|font|haptics|image|message|model|multipart|text|video)/[^\s/;]+",
    re.IGNORECASE,
)
_BASE64_MARKER = re.compile(r"; *base64 *$", re.IGNORECASE)
_SCHEME = re.compile(_LEADING_BLANKS + r"([a-z][a-z0-9+.-]{0,30}):/", re.IGNORECASE)


def is_data_uri(text: str) -> bool:
    """Returns whether a string is a data URI, as opposed to a text that begins with `data:`."""
    head = _HEAD.match(text)
    return head is not None and _is_head(_without_breaks(head[1]))


def decode_image(source: str, path: str) -> bytes:
    """Decodes an image that is at `path`: base64 in either alphabet, or a data URI of it.

    Blanks and line breaks are skipped, and padding may be missing.

    Raises:
        ImageUnreadable: It is neither, or the data URI declares something other than an image.
        InvalidArgument: It is a URL.
    """
    head = _HEAD.match(source)
    if head is not None and _is_head(_without_breaks(head[1])):
        _check_head(_without_breaks(head[1]), path)
        return _decode(_unescaped(source[head.end() :]), path)
    if scheme := _SCHEME.match(source):
        raise InvalidArgument.at(
            path,
            f"{scheme[1].lower()} URLs are not fetched; send the image in base64 or as a data URI",
        )
    return _decode(source, path)


def _is_head(head: str) -> bool:
    return _BASE64_MARKER.search(head) is not None or _MEDIA_TYPE.match(head) is not None


def _check_head(head: str, path: str) -> None:
    media_type = head.partition(";")[0].lower()
    if media_type not in ("", "application/octet-stream") and not media_type.startswith("image/"):
        raise ImageUnreadable.at(path, f"the data URI declares {shown(media_type)}; send an image")
    if _BASE64_MARKER.search(head) is None:
        raise ImageUnreadable.at(path, "the data URI is not in base64; send data:image/…;base64,…")


def _decode(text: str, path: str) -> bytes:
    try:
        return decode_base64(text.encode("ascii").translate(None, _BLANKS).rstrip(b"="))
    except ValueError:
        raise ImageUnreadable.at(path, "the image is not valid base64") from None


def _unescaped(data: str) -> str:
    """Returns the data of a URI, in which characters of base64 may be percent-encoded."""
    # urllib.parse.unquote takes seconds for megabytes of escapes.
    for escape, character in _ESCAPES:
        data = data.replace(escape, character)
    return data


def _without_breaks(head: str) -> str:
    return re.sub(r"[\t\r\n]", "", head)
