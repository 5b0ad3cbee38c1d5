"""Probes on the HTTP port, without a key and without accounting."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from alignserve_server.observability.probes import Probe, probes


def probe_routes(state: Callable[[], str]) -> Iterator[Route]:
    """Yields the routes of the probes, which answer GET and HEAD as the metrics port does."""
    for path, probe in probes(state).items():
        yield Route(path, _answering(probe))


def _answering(probe: Probe) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        status, line = probe()
        return PlainTextResponse(f"{line}\n", status, {"cache-control": "no-store"})

    return answer
