"""Fixtures of the tests over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest_asyncio

from tests.integration.http.ports import serving
from tests.integration.serving import RunningServer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[tuple[RunningServer, httpx.AsyncClient]]:
    """One server with default settings for many tests of requests, which run in the module's event loop."""
    async with serving() as (served, client):
        yield served, client
