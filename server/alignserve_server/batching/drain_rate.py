"""Estimates how fast items get their turn, whatever the bottleneck: decoding, the queue or the device."""

from __future__ import annotations

import math
from collections.abc import Callable

# What lies further back hardly counts. By time, so that a slow-down is noticed; by items too, since what was
# measured while hardly anybody waited is soon wrong.
_MEMORY_SECONDS = 5.0
_MEMORY_ITEMS = 100


class DrainRate:
    """Measures items per second over the time in which any wait."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Starts with nothing there; `clock` tells monotonic seconds."""
        self._clock = clock
        self._items = 0
        self._since = 0.0  # when something left last, or came to where nothing was
        self._left_items = 0.0  # items that left and the seconds this took, both faded
        self._seconds = 0.0

    def enter(self, items: int) -> None:
        """Counts items that come."""
        if self._items == 0:
            self._since = self._clock()
        self._items += items

    def leave(self, items: int, *, served: bool = True) -> None:
        """Counts items that go; those that give up say nothing of how fast the others get their turn."""
        self._items -= items
        if not served:
            return
        now = self._clock()
        elapsed, self._since = now - self._since, now
        kept = math.exp(-elapsed / _MEMORY_SECONDS - items / _MEMORY_ITEMS)
        self._left_items = self._left_items * kept + items
        self._seconds = self._seconds * kept + elapsed

    def seconds_to_drain(self) -> float:
        """Estimates when all that are there now will have left.

        While none has ever left, that is as long again as it has taken so far.
        """
        if self._items == 0:
            return 0.0
        return self.seconds_for(self._items) if self._left_items else self._measured_seconds()

    def seconds_for(self, items: int) -> float:
        """Estimates how long it takes until so many have had their turn; 0 while none ever has."""
        return self._measured_seconds() * items / self._left_items if self._left_items else 0.0

    def _measured_seconds(self) -> float:
        return self._seconds + (self._clock() - self._since if self._items else 0.0)
