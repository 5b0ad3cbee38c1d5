"""Fixtures of the tests over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.integration.http.ports import Shared, serving


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Shared]:
    """One server with default settings for many requests, in the module's event loop."""
    async with serving() as both:
        yield both
