"""The lag measurement detects a blocked event loop, and resets with the next watch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.lag import TickingServer
from tests.hostile.live import LiveServer
from tests.hostile.ticking import Page, tick
from tests.integration.serving import text_request, until

pytestmark = pytest.mark.hostile

_BLOCKED_SECONDS = 0.2
_MAX_LAG_PARSES = 10.0


def _compute() -> None:
    end = time.process_time() + _BLOCKED_SECONDS
    while time.process_time() < end:
        pass


def _sleep() -> None:
    time.sleep(_BLOCKED_SECONDS)


@pytest.mark.parametrize("block", [_compute, _sleep])
async def test_a_blocked_loop_is_detected(tmp_path: Path, block: Callable[[], None]) -> None:
    """A callback that computes or waits for 0.2 s is a lag of about 0.2 s, until the next watch starts."""
    (tmp_path / "page").write_bytes(bytes(Page.SIZE))
    page = Page(tmp_path / "page")
    ticker = asyncio.ensure_future(tick(page))
    page.watch = 1
    await until(lambda: page.seen[2] == 1)

    last = page.seen[1]
    block()
    await until(lambda: page.seen[1] != last)
    held_up = page.seen[0]
    page.watch = 2
    await until(lambda: page.seen[2] == 2)
    afterwards = page.seen[0]
    ticker.cancel()

    assert held_up > _BLOCKED_SECONDS / 2  # less if another thread waits for a core meanwhile
    assert afterwards < held_up


async def test_the_lag_of_a_server_is_measured(ticking: TickingServer, live: LiveServer) -> None:
    """The server works as usual, and small calls cause little lag."""
    lag = await ticking.least_lag_in_parses(
        lambda: live.stub.EmbedText(text_request("a")), bound=_MAX_LAG_PARSES
    )

    assert 0.0 <= lag < _MAX_LAG_PARSES
