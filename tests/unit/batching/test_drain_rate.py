"""How fast items leave."""

from __future__ import annotations

import pytest
from alignserve_server.batching.drain_rate import DrainRate

from tests.unit.fakes import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def pace(clock: FakeClock) -> DrainRate:
    return DrainRate(clock)


def _serve(pace: DrainRate, clock: FakeClock, rounds: int, *, items: int, seconds: float) -> None:
    """Lets a number of items leave at regular intervals, while others take their places."""
    for _ in range(rounds):
        clock.advance(seconds)
        pace.leave(items)
        pace.enter(items)


def test_nothing_there_has_left_already(pace: DrainRate, clock: FakeClock) -> None:
    """Whoever finds nobody need not wait."""
    clock.advance(100.0)

    seconds = pace.seconds_to_drain()

    assert seconds == 0.0


def test_before_anything_has_left_it_takes_as_long_again(pace: DrainRate, clock: FakeClock) -> None:
    """Time without an answer is all that is known; the idle time before is not part of it."""
    clock.advance(100.0)
    pace.enter(50)
    clock.advance(2.0)

    seconds = pace.seconds_to_drain()

    assert seconds == 2.0


@pytest.mark.parametrize(("items", "seconds"), [(1, 0.25), (4, 1.0), (32, 8.0)])
def test_what_is_there_leaves_at_the_measured_pace(
    pace: DrainRate, clock: FakeClock, items: int, seconds: float
) -> None:
    """Four items per second, one by one or in batches, are four items per second."""
    pace.enter(64)

    _serve(pace, clock, 100, items=items, seconds=seconds)

    assert pace.seconds_to_drain() == pytest.approx(16.0, rel=0.01)


def test_an_idle_time_does_not_count(pace: DrainRate, clock: FakeClock) -> None:
    """An hour without callers says nothing of how fast they are served."""
    pace.enter(10)
    _serve(pace, clock, 100, items=1, seconds=0.1)
    for _ in range(10):
        clock.advance(0.1)
        pace.leave(1)

    clock.advance(3600.0)
    pace.enter(50)

    assert pace.seconds_to_drain() == pytest.approx(5.0, rel=0.01)


def test_a_slow_down_is_noticed_within_seconds(pace: DrainRate, clock: FakeClock) -> None:
    """After a thousand items per second, one per second soon counts for more."""
    pace.enter(10)
    _serve(pace, clock, 5000, items=1, seconds=0.001)

    _serve(pace, clock, 30, items=1, seconds=1.0)

    assert pace.seconds_to_drain() == pytest.approx(10.0, rel=0.2)


def test_the_pace_of_a_few_callers_is_soon_forgotten(pace: DrainRate, clock: FakeClock) -> None:
    """One call at a time says little of what a loaded server can do."""
    pace.enter(1)
    _serve(pace, clock, 1000, items=1, seconds=0.1)

    pace.enter(499)
    _serve(pace, clock, 20, items=50, seconds=0.1)

    assert pace.seconds_to_drain() == pytest.approx(1.0, rel=0.2)


def test_a_standstill_makes_the_estimate_grow(pace: DrainRate, clock: FakeClock) -> None:
    """Time that passes without an answer counts before there is one."""
    pace.enter(10)
    _serve(pace, clock, 100, items=1, seconds=0.01)
    before = pace.seconds_to_drain()

    clock.advance(60.0)

    assert pace.seconds_to_drain() > before + 5.0
