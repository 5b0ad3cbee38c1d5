"""How much traffic a replica holds within a latency: found by trying rates in the simulation."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from alignserve_server.planning.simulation import Arrival, Outcome, Replica, simulate

_PRECISION = 0.01  # of the highest rate
_LEAST_SHARE = 0.001  # of what one caller at a time sends; a lower rate is none


@dataclass(frozen=True, slots=True)
class Traffic:
    """Calls of one item, none like another, that come at random (Poisson).

    Attributes:
        image_share: Share of images, from 0 to 1; the rest are texts.
        text_tokens: Fewest and most in a text; all between are as likely.
        calls: How many come.
    """

    image_share: float
    text_tokens: tuple[int, int]
    calls: int

    def arrivals(self, rate: float) -> Iterator[Arrival]:
        """Yields calls, so many a second; the same ones at every rate, so that rates can be compared."""
        chance = random.Random(0)  # noqa: S311 — no secret
        time = 0.0
        for _ in range(self.calls):
            time += chance.expovariate(1.0) / rate
            is_image, tokens = chance.random() < self.image_share, chance.randint(*self.text_tokens)
            yield Arrival(time, "image", 1) if is_image else Arrival(time, "text", tokens)


def expected(replica: Replica, traffic: Traffic, rate: float) -> Outcome:
    """Returns what becomes of so many calls a second."""
    return simulate(replica, traffic.arrivals(rate))


def on_idle(replica: Replica, traffic: Traffic) -> Outcome:
    """Returns what becomes of calls that never meet another: no replica is faster."""
    calls = enumerate(traffic.arrivals(1.0))
    return simulate(replica, (call._replace(time=1e3 * number) for number, call in calls))


def holds(outcome: Outcome, p99_seconds: float) -> bool:
    """Says whether 99 % of calls were answered in time, and would be for ever."""
    return not outcome.is_saturated and outcome.latency(99) <= p99_seconds


def highest_rate(
    replica: Replica,
    traffic: Traffic,
    p99_seconds: float,
    on_try: Callable[[float], None] = lambda _: None,
) -> float:
    """Returns the most calls a second that a replica holds, or 0 if it holds hardly any.

    `on_try` is told each rate before it is tried.
    """

    def is_held(rate: float) -> bool:
        on_try(rate)
        return holds(expected(replica, traffic, rate), p99_seconds)

    one_caller = 1.0 / on_idle(replica, traffic).latency(50)
    low, high = 0.0, one_caller
    while is_held(high):
        low, high = high, 2 * high
    while high - low > _PRECISION * high and high > _LEAST_SHARE * one_caller:
        middle = (low + high) / 2
        if is_held(middle):
            low = middle
        else:
            high = middle
    return low
