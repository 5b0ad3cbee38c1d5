"""The two ways to load a server: so many requests at once, or so many a second."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from alignserve._bench.arrivals import Arrivals, arrival_seconds


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """Keeps `concurrency` requests in flight: each answer lets the next request out.

    It finds out what a server can do at most. Its latencies are those of callers who wait for their answers.
    """

    concurrency: int

    @property
    def mode(self) -> Literal["concurrency", "rate"]:
        """Returns the word for what is kept constant."""
        return "concurrency"

    @property
    def value(self) -> float:
        """Returns the position in a sweep."""
        return self.concurrency

    @property
    def most_in_flight(self) -> int:
        """Returns how many requests may be under way at once."""
        return self.concurrency


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Sends `rate` requests a second, whatever becomes of them, as a public does.

    Latency counts from the time at which a request was due. If `max_in_flight` are under way, later ones
    leave late, but none is left out, and what they waited is counted.
    """

    rate: float
    arrivals: Arrivals = "poisson"
    seed: int = 0
    max_in_flight: int = 1000

    @property
    def mode(self) -> Literal["concurrency", "rate"]:
        """Returns the word for what is kept constant."""
        return "rate"

    @property
    def value(self) -> float:
        """Returns the position in a sweep."""
        return self.rate

    @property
    def most_in_flight(self) -> int:
        """Returns how many requests may be under way at once."""
        return self.max_in_flight

    def due_seconds(self) -> Iterator[float]:
        """Yields the time at which each request is due, counted from the beginning."""
        return arrival_seconds(self.rate, self.arrivals, self.seed)


Load: TypeAlias = ClosedLoop | OpenLoop
