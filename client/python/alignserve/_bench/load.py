"""The two ways to load a server: a number of concurrent requests, or a rate of requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from alignserve._bench.arrivals import Arrivals, arrival_seconds


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """Keeps `concurrency` requests in flight: each answer releases the next request.

    It finds a server's maximum throughput. Its latencies are those of clients that wait for their answers.
    """

    concurrency: int

    @property
    def mode(self) -> Literal["concurrency", "rate"]:
        """Returns the name of the quantity that is kept constant."""
        return "concurrency"

    @property
    def value(self) -> float:
        """Returns the position in a sweep."""
        return self.concurrency

    @property
    def in_flight_limit(self) -> int:
        """Returns the maximum number of requests in flight."""
        return self.concurrency


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Sends `rate` requests per second whether or not they are answered, as independent users do.

    Latency is measured from the time at which a request was due. If `max_in_flight` requests are in flight,
    later ones are sent late, but none is dropped, and the delay counts as latency.
    """

    rate: float
    arrivals: Arrivals = "poisson"
    seed: int = 0
    max_in_flight: int = 1000

    @property
    def mode(self) -> Literal["concurrency", "rate"]:
        """Returns the name of the quantity that is kept constant."""
        return "rate"

    @property
    def value(self) -> float:
        """Returns the position in a sweep."""
        return self.rate

    @property
    def in_flight_limit(self) -> int:
        """Returns the maximum number of requests in flight."""
        return self.max_in_flight

    def due_seconds(self) -> Iterator[float]:
        """Yields the time at which each request is due, measured from the start."""
        return arrival_seconds(self.rate, self.arrivals, self.seed)


Load: TypeAlias = ClosedLoop | OpenLoop
