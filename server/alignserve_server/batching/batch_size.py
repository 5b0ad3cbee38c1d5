"""Measures the best batch size and the fixed cost of a batch, which depends on model, runtime and machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

from alignserve_server.model.encoder import OutOfDeviceMemory

WORTH = 0.95  # of the best throughput: the smallest batch that reaches this share is preferred
LONGEST_SECONDS = 0.5  # for a batch: longer ones keep the other modality waiting
_MIN_ROUNDS, _MAX_ROUNDS = 3, 5  # only the fastest run of each size counts: slower ones were disturbed
_BUDGET_SECONDS = 2.0  # once spent, no further round starts after the first three
_GIVE_UP_FACTOR = 8  # stop three doublings past the best size: larger ones cost time and memory to try


class BestBatch(NamedTuple):
    """The smallest batch with nearly the best throughput."""

    size: int
    overhead: float  # fixed cost of a batch, in entries that cost as much; at most `size`


Run: TypeAlias = Callable[[int], float | None]  # runs a batch of a size; see `best_batch`


def best_batch(run: Run, limit: int, clock: Callable[[], float] = time.perf_counter) -> BestBatch:
    """Measures batches and returns the best one.

    Sizes double from 1 up to `limit`, until three in a row bring no gain, one does not fit the device, or the
    next is expected to take over half a second. Sizes are measured in turn, so that a burst of other work on
    the machine affects all of them alike.

    Args:
        run: Runs a batch of a given size, once to warm up each size, then several times. Returns how long it
            took, or None if the clock shows that.
        limit: Maximum size.
        clock: Wall-clock seconds, or CPU seconds if the model runs only on the CPU.

    Raises:
        OutOfDeviceMemory: Not even a single entry fits.
    """
    trials = _Trials(run, clock)
    for size in doubling(limit):
        if trials.takes_long(size) and trials.repeat().takes_long(size):
            break
        try:
            trials.add(size)
        except OutOfDeviceMemory:
            if size == 1:
                raise
            break
        if trials.has_no_gain(size) and trials.repeat().has_no_gain(size):
            break
    return trials.repeat().best()


def doubling(limit: int) -> Iterator[int]:
    """Yields the powers of two below the limit, then the limit."""
    size = 1
    while size < limit:
        yield size
        size *= 2
    yield limit


class _Trials:
    """The fastest run of each size so far."""

    def __init__(self, run: Run, clock: Callable[[], float]) -> None:
        self._run = run
        self._clock = clock
        self._begin = clock()
        self._seconds: dict[int, float] = {}
        self._rounds = 0  # completed for all sizes

    def add(self, size: int) -> None:
        """Warms up a size and times it once."""
        self._run(size)
        self._seconds[size] = math.inf
        self._time(size)
        self._rounds = 1

    def repeat(self) -> _Trials:
        """Times all sizes in turn until each has had its rounds or the budget is spent."""
        while self._rounds < _MIN_ROUNDS or (self._rounds < _MAX_ROUNDS and self._is_within_budget()):
            for size in self._seconds:
                self._time(size)
            self._rounds += 1
        return self

    def takes_long(self, size: int) -> bool:
        """Returns whether a batch would keep others waiting, judging by the best throughput so far."""
        best = min((seconds / each for each, seconds in self._seconds.items()), default=0.0)
        return size * best > LONGEST_SECONDS

    def has_no_gain(self, size: int) -> bool:
        """Returns whether the last three doublings up to a size brought no gain."""
        return size >= _GIVE_UP_FACTOR * self.best_size()

    def best(self) -> BestBatch:
        """Returns the best batch. Its overhead is that of a straight line through it and a single entry."""
        size = self.best_size()
        if size == 1:
            return BestBatch(1, 0.0)
        single = self._seconds[1]
        per_entry = max(1e-12, (self._seconds[size] - single) / (size - 1))
        return BestBatch(size, min(float(size), max(0.0, single / per_entry - 1.0)))

    def best_size(self) -> int:
        """Returns the smallest size with nearly the best throughput."""
        rates = {size: size / max(seconds, 1e-9) for size, seconds in self._seconds.items()}
        most = max(rates.values())
        return min(size for size, rate in rates.items() if rate >= WORTH * most)

    def _is_within_budget(self) -> bool:
        return self._clock() - self._begin < _BUDGET_SECONDS

    def _time(self, size: int) -> None:
        start = self._clock()
        measured = self._run(size)
        seconds = self._clock() - start if measured is None else measured
        self._seconds[size] = min(self._seconds[size], seconds)
