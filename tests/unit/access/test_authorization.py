"""Quotas of API keys, on a fake clock."""

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
    """Calls with a key that permits two requests per second; waits advance the fake clock."""

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
        await self._access.admit_item(self._access.authorize(_SCOPES, self._credentials), {Scope.EMBED})

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        if self.is_stuck:
            await asyncio.Event().wait()
        self.clock.advance(seconds)


@pytest.fixture
async def caller(tmp_path: Path) -> _Caller:
    return _Caller(tmp_path / "keys.json")


async def test_one_second_of_requests_may_come_in_a_burst(caller: _Caller) -> None:
    """One more is refused with a delay; it is admitted after the delay and not before."""
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


async def test_stream_items_are_slowed_down_to_the_rate(caller: _Caller) -> None:
    """The first two are served immediately, and the others every half second."""
    for _ in range(5):
        await caller.send_item()

    assert caller.waits == [0.5, 0.5, 0.5]


async def test_idle_time_does_not_accumulate(caller: _Caller) -> None:
    """After an hour, the burst is still one second's worth of requests."""
    caller.clock.advance(3600)
    for _ in range(3):
        await caller.send_item()

    assert caller.waits == [0.5]


async def test_a_cancelled_item_is_not_charged(caller: _Caller) -> None:
    """A caller that gives up and retries does not wait longer."""
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
    """Other values of `authorization` are ignored."""
    with changed_keys(tmp_path / "keys.json") as keys:
        key, keys["search"] = new_key("search", _SCOPES)
    access = Access(KeyRing(tmp_path / "keys.json"))

    found = access.authorize(_SCOPES, ["Basic abc", f"bearer {key}", "Bearer other"])

    assert (found.name, found.refusal) == ("search", None)


async def test_a_refused_caller_keeps_its_name(tmp_path: Path) -> None:
    """A key without the scope is still identified, so that its refusals are counted under its name."""
    with changed_keys(tmp_path / "keys.json") as keys:
        key, keys["search"] = new_key("search", _SCOPES)
    access = Access(KeyRing(tmp_path / "keys.json"))

    found = access.authorize({Scope.CLASSIFY}, [f"Bearer {key}"])

    assert found.name == "search"
    with pytest.raises(ScopeMissing), access.call(found, counts_items=False):
        pass


async def test_an_open_call_needs_no_key(tmp_path: Path) -> None:
    """A key is ignored, even if it is valid."""
    with changed_keys(tmp_path / "keys.json"):
        pass

    assert Access(KeyRing(tmp_path / "keys.json")).authorize(None, ["Bearer wrong"]) is ANONYMOUS
