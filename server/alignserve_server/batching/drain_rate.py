"""Estimates how fast the queue drains, whatever the bottleneck: decoding, the queue or the device."""

from __future__ import annotations

import math
from collections.abc import Callable

# Older measurements fade. They fade by time, so that a slowdown is noticed, and by items, because a rate
# measured while almost nothing waited is soon wrong.
_MEMORY_SECONDS = 5.0
_MEMORY_ITEMS = 100


class DrainRate:
    """Measures items per second over the time in which items wait."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Starts empty; `clock` returns monotonic seconds."""
        self._clock = clock
        self._items = 0
        self._since = 0.0  # when an item last left, or entered an empty queue
        self._left_items = 0.0  # items that left and the seconds this took, both decayed
        self._seconds = 0.0

    def enter(self, items: int) -> None:
        """Counts items that enter."""
        if self._items == 0:
            self._since = self._clock()
        self._items += items

    def leave(self, items: int, *, served: bool = True) -> None:
        """Counts items that leave; those not served do not affect the measured rate."""
        self._items -= items
        if not served:
            return
        now = self._clock()
        elapsed, self._since = now - self._since, now
        kept = math.exp(-elapsed / _MEMORY_SECONDS - items / _MEMORY_ITEMS)
        self._left_items = self._left_items * kept + items
        self._seconds = self._seconds * kept + elapsed

    def seconds_to_drain(self) -> float:
        """Estimates how long it takes until all current items have left.

        Until a first item has been served, returns the time waited so far.
        """
        if self._items == 0:
            return 0.0
        return self.seconds_for(self._items) if self._left_items else self._measured_seconds()

    def seconds_for(self, items: int) -> float:
        """Estimates how long it takes to serve that many items; 0 until a first item has been served."""
        return self._measured_seconds() * items / self._left_items if self._left_items else 0.0

    def _measured_seconds(self) -> float:
        return self._seconds + (self._clock() - self._since if self._items else 0.0)
