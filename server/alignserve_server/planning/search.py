"""Finds the traffic that a replica sustains within a latency, by simulating rates."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from alignserve_server.planning.simulation import Arrival, Outcome, Replica, simulate

_PRECISION = 0.01  # of the highest rate
_MIN_SHARE = 0.001  # of the rate of one sequential caller; a lower rate counts as none


@dataclass(frozen=True, slots=True)
class Traffic:
    """Calls of one item, all different, with Poisson arrivals.

    Attributes:
        image_share: Share of images, from 0 to 1; the rest are texts.
        text_tokens: Minimum and maximum length of a text; uniformly distributed.
        calls: Number of calls.
    """

    image_share: float
    text_tokens: tuple[int, int]
    calls: int

    def arrivals(self, rate: float) -> Iterator[Arrival]:
        """Yields calls at a rate per second; the same calls at every rate, so that rates can be compared."""
        rng = random.Random(0)  # noqa: S311 — not a secret
        time = 0.0
        for _ in range(self.calls):
            time += rng.expovariate(1.0) / rate
            is_image, tokens = rng.random() < self.image_share, rng.randint(*self.text_tokens)
            yield Arrival(time, "image", 1) if is_image else Arrival(time, "text", tokens)


def expected(replica: Replica, traffic: Traffic, rate: float) -> Outcome:
    """Returns the outcome of a rate of calls per second."""
    return simulate(replica, traffic.arrivals(rate))


def on_idle(replica: Replica, traffic: Traffic) -> Outcome:
    """Returns the outcome of calls that never overlap: no replica is faster."""
    calls = enumerate(traffic.arrivals(1.0))
    return simulate(replica, (call._replace(time=1e3 * number) for number, call in calls))


def sustains(outcome: Outcome, p99_seconds: float) -> bool:
    """Returns whether 99 % of calls were answered in time, without a growing queue."""
    return not outcome.is_saturated and outcome.latency(99) <= p99_seconds


def highest_rate(
    replica: Replica,
    traffic: Traffic,
    p99_seconds: float,
    on_try: Callable[[float], None] = lambda _: None,
) -> float:
    """Returns the maximum rate of calls per second that a replica sustains, or 0 if it is negligible.

    `on_try` is called with each rate before it is simulated.
    """

    def is_sustained(rate: float) -> bool:
        on_try(rate)
        return sustains(expected(replica, traffic, rate), p99_seconds)

    one_caller = 1.0 / on_idle(replica, traffic).latency(50)
    low, high = 0.0, one_caller
    while is_sustained(high):
        low, high = high, 2 * high
    while high - low > _PRECISION * high and high > _MIN_SHARE * one_caller:
        middle = (low + high) / 2
        if is_sustained(middle):
            low = middle
        else:
            high = middle
    return low
