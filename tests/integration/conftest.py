"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.integration.serving import RunningServer, running


@pytest.fixture
async def served() -> AsyncIterator[RunningServer]:
    """A server with one lane and default settings."""
    async with running() as server:
        yield server
