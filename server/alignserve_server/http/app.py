"""The ASGI app of the HTTP port: the endpoints of all dialects, by path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from alignserve_server.http.endpoint import Dialect, Endpoint, StreamEndpoint
from alignserve_server.http.exchange import Exchanges, PathApp, UnknownPath

_PREFLIGHT_SECONDS = 7200  # more than browsers keep it
_EXPOSED = (
    "grpc-status",
    "grpc-message",
    "grpc-status-details-bin",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "x-request-id",
)


def build_app(
    endpoints: Iterable[Endpoint | StreamEndpoint],
    default: Dialect,
    exchanges: Exchanges,
    probes: Iterable[Route] = (),
    cors_origins: Sequence[str] = (),
) -> ASGIApp:
    """Returns the app.

    Several endpoints may have the same path: the HTTP method and the type of the body decide. If none fits,
    the error has the shape of the first one's dialect.

    Args:
        endpoints: Those of all dialects.
        default: The dialect of paths that belong to no other.
        exchanges: Answers the requests.
        probes: The routes of the probes.
        cors_origins: The origins whose pages may call, such as `https://app.example`; `*` for all.
    """
    by_path: dict[str, list[Endpoint | StreamEndpoint]] = {}
    dialects: dict[str, Dialect] = {"": default}
    for endpoint in endpoints:
        by_path.setdefault(endpoint.path, []).append(endpoint)
        for prefix in endpoint.dialect.prefixes:
            dialects.setdefault(prefix, endpoint.dialect)
    routes: Sequence[Route] = [Route(path, PathApp(found, exchanges)) for path, found in by_path.items()]
    app: ASGIApp = Router(
        [*probes, *routes], redirect_slashes=False, default=UnknownPath(dialects, exchanges)
    )
    if not cors_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=cors_origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),  # a key is a header that a page must know; there are no cookies to protect
        expose_headers=_EXPOSED,
        max_age=_PREFLIGHT_SECONDS,
    )
