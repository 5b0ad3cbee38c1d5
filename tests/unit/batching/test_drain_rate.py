"""How fast the queue drains."""

from __future__ import annotations

import pytest
from alignserve_server.batching.drain_rate import DrainRate

from tests.unit.fakes import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def rate(clock: FakeClock) -> DrainRate:
    return DrainRate(clock)


def _serve(rate: DrainRate, clock: FakeClock, rounds: int, *, items: int, seconds: float) -> None:
    """Serves items at regular intervals while others take their places."""
    for _ in range(rounds):
        clock.advance(seconds)
        rate.leave(items)
        rate.enter(items)


def test_an_empty_queue_drains_at_once(rate: DrainRate, clock: FakeClock) -> None:
    """A call that finds an empty queue does not wait."""
    clock.advance(100.0)

    seconds = rate.seconds_to_drain()

    assert seconds == 0.0


def test_the_first_estimate_is_the_time_waited_so_far(rate: DrainRate, clock: FakeClock) -> None:
    """Until then only the time without an answer is known; earlier idle time does not count."""
    clock.advance(100.0)
    rate.enter(50)
    clock.advance(2.0)

    seconds = rate.seconds_to_drain()

    assert seconds == 2.0


@pytest.mark.parametrize(("items", "seconds"), [(1, 0.25), (4, 1.0), (32, 8.0)])
def test_items_leave_at_the_measured_rate(
    rate: DrainRate, clock: FakeClock, items: int, seconds: float
) -> None:
    """Four items per second give the same estimate, whether they leave one by one or in batches."""
    rate.enter(64)

    _serve(rate, clock, 100, items=items, seconds=seconds)

    assert rate.seconds_to_drain() == pytest.approx(16.0, rel=0.01)


def test_idle_time_does_not_count(rate: DrainRate, clock: FakeClock) -> None:
    """An hour without callers does not affect the measured rate."""
    rate.enter(10)
    _serve(rate, clock, 100, items=1, seconds=0.1)
    for _ in range(10):
        clock.advance(0.1)
        rate.leave(1)

    clock.advance(3600.0)
    rate.enter(50)

    assert rate.seconds_to_drain() == pytest.approx(5.0, rel=0.01)


def test_a_slowdown_is_noticed_within_seconds(rate: DrainRate, clock: FakeClock) -> None:
    """After a drop from a thousand items per second to one, the new rate soon dominates."""
    rate.enter(10)
    _serve(rate, clock, 5000, items=1, seconds=0.001)

    _serve(rate, clock, 30, items=1, seconds=1.0)

    assert rate.seconds_to_drain() == pytest.approx(10.0, rel=0.2)


def test_the_rate_under_light_load_is_soon_forgotten(rate: DrainRate, clock: FakeClock) -> None:
    """The rate at one call at a time says little about a loaded server."""
    rate.enter(1)
    _serve(rate, clock, 1000, items=1, seconds=0.1)

    rate.enter(499)
    _serve(rate, clock, 20, items=50, seconds=0.1)

    assert rate.seconds_to_drain() == pytest.approx(1.0, rel=0.2)


def test_a_standstill_makes_the_estimate_grow(rate: DrainRate, clock: FakeClock) -> None:
    """Time without an answer counts even before the next answer."""
    rate.enter(10)
    _serve(rate, clock, 100, items=1, seconds=0.01)
    before = rate.seconds_to_drain()

    clock.advance(60.0)

    assert rate.seconds_to_drain() > before + 5.0
