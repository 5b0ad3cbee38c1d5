"""The time that a run has."""

from __future__ import annotations

import time


class Deadline:
    """A point in time that all columns share, and that can be brought forward to end them."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        """Whether nothing more should start."""
        return self.remaining() == 0.0

    def remaining(self, at_most: float = float("inf")) -> float:
        """Returns the seconds left, not more than `at_most`."""
        return max(0.0, min(at_most, self._end - time.monotonic()))

    def expire(self) -> None:
        """Ends the time now."""
        self._end = 0.0
