"""Quotas of API keys, on a clock that stands still."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from alignserve_server.access.authorization import ANONYMOUS, Access
from alignserve_server.access.keys import KeyRing, Scope, changed_keys, new_key
from alignserve_server.errors import QuotaExceeded, ScopeMissing

from tests.unit.fakes import FakeClock

_SCOPES = frozenset({Scope.EMBED})


class _Caller:
    """Calls with a key that may make two requests a second; waits take the time that they should."""

    def __init__(self, path: Path) -> None:
        with changed_keys(path) as keys:
            key, keys["slow"] = new_key("slow", frozenset({Scope.EMBED}), max_requests_per_second=2)
        self.clock = FakeClock()
        self.waits: list[float] = []
        self.is_stuck = False
        self._credentials = [f"Bearer {key}"]
        self._access = Access(KeyRing(path), self.clock, self._sleep)

    def call(self) -> None:
        with self._access.call(self._access.authorize(_SCOPES, self._credentials), counts_items=False):
            pass

    async def send_item(self) -> None:
        await self._access.admit_item(self._access.authorize(_SCOPES, self._credentials), Scope.EMBED)

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


async def test_the_first_bearer_key_counts(tmp_path: Path) -> None:
    """What else came as `authorization` is passed over."""
    with changed_keys(tmp_path / "keys.json") as keys:
        key, keys["search"] = new_key("search", _SCOPES)
    access = Access(KeyRing(tmp_path / "keys.json"))

    found = access.authorize(_SCOPES, ["Basic abc", f"bearer {key}", "Bearer other"])

    assert (found.name, found.refusal) == ("search", None)


async def test_a_refused_caller_keeps_its_name(tmp_path: Path) -> None:
    """A key without the scope is known, so that its refusals are counted as its own."""
    with changed_keys(tmp_path / "keys.json") as keys:
        key, keys["search"] = new_key("search", _SCOPES)
    access = Access(KeyRing(tmp_path / "keys.json"))

    found = access.authorize({Scope.CLASSIFY}, [f"Bearer {key}"])

    assert found.name == "search"
    with pytest.raises(ScopeMissing), access.call(found, counts_items=False):
        pass


async def test_an_open_call_needs_no_key(tmp_path: Path) -> None:
    """Not even a valid one is looked at."""
    with changed_keys(tmp_path / "keys.json"):
        pass

    assert Access(KeyRing(tmp_path / "keys.json")).authorize(None, ["Bearer wrong"]) is ANONYMOUS
