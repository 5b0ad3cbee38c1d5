"""A server with an HTTP port on port 0, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from alignserve_server.http import door
from alignserve_server.http.endpoint import Endpoint

from tests.integration.serving import RunningServer, running


@asynccontextmanager
async def serving(
    *endpoints: Endpoint, **overrides: Any
) -> AsyncIterator[tuple[RunningServer, httpx.AsyncClient]]:
    """Runs a server; with endpoints, it serves these in addition to its own."""
    with pytest.MonkeyPatch.context() as patch:
        own = door._endpoints
        patch.setattr(door, "_endpoints", lambda *given: (*endpoints, *own(*given)))
        async with (
            running(http_listen="127.0.0.1:0", **overrides) as served,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.server.http_port}") as client,
        ):
            yield served, client
