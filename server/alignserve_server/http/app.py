"""The ASGI app of the HTTP port: the endpoints of all dialects, by path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from starlette.routing import Route, Router
from starlette.types import ASGIApp

from alignserve_server.http.endpoint import Dialect, Endpoint, StreamEndpoint
from alignserve_server.http.exchange import Exchanges, PathApp, UnknownPath


def build_app(
    endpoints: Iterable[Endpoint | StreamEndpoint], default: Dialect, exchanges: Exchanges
) -> ASGIApp:
    """Returns the app.

    Several endpoints may have the same path: the HTTP method and the type of the body decide. If none fits,
    the error has the shape of the first one's dialect.

    Args:
        endpoints: Those of all dialects.
        default: The dialect of paths that belong to no other.
        exchanges: Answers the requests.
    """
    by_path: dict[str, list[Endpoint | StreamEndpoint]] = {}
    dialects: dict[str, Dialect] = {"": default}
    for endpoint in endpoints:
        by_path.setdefault(endpoint.path, []).append(endpoint)
        for prefix in endpoint.dialect.prefixes:
            dialects.setdefault(prefix, endpoint.dialect)
    routes: Sequence[Route] = [Route(path, PathApp(found, exchanges)) for path, found in by_path.items()]
    return Router(routes, redirect_slashes=False, default=UnknownPath(dialects, exchanges))
