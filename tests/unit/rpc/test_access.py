"""Quotas of API keys, on a clock that stands still."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from alignserve_server.access.keys import KeyRing, Scope, changed_keys, new_key
from alignserve_server.errors import QuotaExceeded
from alignserve_server.rpc.access import Access

from tests.unit.fakes import FakeClock

_METHOD = "/alignserve.v1.AlignService/EmbedText"


class _Caller:
    """Calls with a key that may make two requests a second; waits take the time that they should."""

    def __init__(self, path: Path) -> None:
        with changed_keys(path) as keys:
            key, keys["slow"] = new_key("slow", frozenset({Scope.EMBED}), max_requests_per_second=2)
        self.clock = FakeClock()
        self.waits: list[float] = []
        self.is_stuck = False
        self._metadata = [("authorization", f"Bearer {key}")]
        self._access = Access(KeyRing(path), self.clock, self._sleep)

    def call(self) -> None:
        self._access.identify(_METHOD, self._metadata)
        with self._access.call(counts_items=False):
            pass

    async def send_item(self) -> None:
        self._access.identify(_METHOD, self._metadata)
        await self._access.admit_item(Scope.EMBED)

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        if self.is_stuck:
            await asyncio.Event().wait()
        self.clock.advance(seconds)


@pytest.fixture
async def caller(tmp_path: Path) -> _Caller:
    return _Caller(tmp_path / "keys.json")


async def test_a_second_of_requests_may_come_at_once(caller: _Caller) -> None:
    """One more is told when to come back, and is right to come then and not before."""
    caller.call()
    caller.call()

    with pytest.raises(QuotaExceeded) as early:
        caller.call()
    caller.clock.advance(0.25)
    with pytest.raises(QuotaExceeded) as still_early:
        caller.call()
    caller.clock.advance(0.25)
    caller.call()

    assert (early.value.retry_delay_seconds, still_early.value.retry_delay_seconds) == (0.5, 0.25)


async def test_items_wait_for_as_long_as_the_rate_says(caller: _Caller) -> None:
    """The first two come at once, and the others every half second."""
    for _ in range(5):
        await caller.send_item()

    assert caller.waits == [0.5, 0.5, 0.5]


async def test_idle_time_is_not_saved_up(caller: _Caller) -> None:
    """After an hour, a second's worth may come at once, as at the start."""
    caller.clock.advance(3600)
    for _ in range(3):
        await caller.send_item()

    assert caller.waits == [0.5]


async def test_an_item_that_is_given_up_costs_nothing(caller: _Caller) -> None:
    """Who gives up and tries again waits no longer for it."""
    caller.call()
    caller.call()
    caller.is_stuck = True
    for _ in range(3):
        item = asyncio.create_task(caller.send_item())
        await asyncio.sleep(0)
        item.cancel()
        await asyncio.gather(item, return_exceptions=True)

    assert caller.waits == [0.5, 0.5, 0.5]
