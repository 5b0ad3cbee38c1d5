"""A histogram of kept and dropped rows by a number: streaming, bounded, the same for any order of rows."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_STEPS = 128  # buckets from one power of two to the next, so a bucket is less than 0.8 % wide
_MIN_EXPONENT, _MAX_EXPONENT = -30, 64  # smaller numbers count as 0, larger ones as 2**64
_ZERO = 0
_MAX_RATIO = 8.0  # of the 99th percentile to the median; above it, most rows would be in the first bars


class Bar(NamedTuple):
    """A range of values, from `low` up to `high`, and how many rows have one."""

    low: float
    high: float
    kept: int
    dropped: int


class Histogram:
    """Counts numbers in at most 24,000 buckets, of which few are used. Counts, minimum and maximum are exact.

    Attributes:
        missing: Number of rows without a value: `None`, NaN or infinite.
    """

    def __init__(self) -> None:
        self.missing = 0
        self._min = math.inf
        self._max = -math.inf
        self._is_whole = True  # all values are whole numbers
        self._kept: Counter[int] = Counter()
        self._dropped: Counter[int] = Counter()

    def add(self, value: float | None, *, is_kept: bool) -> None:
        """Counts one row's value."""
        if value is None or not math.isfinite(value):
            self.missing += 1
            return
        self._min, self._max = min(self._min, value), max(self._max, value)
        self._is_whole &= float(value).is_integer()
        (self._kept if is_kept else self._dropped)[_bucket(value)] += 1

    @property
    def kept(self) -> int:
        """Returns the number of kept rows that have a value."""
        return self._kept.total()

    @property
    def dropped(self) -> int:
        """Returns the number of dropped rows that have a value."""
        return self._dropped.total()

    def percentile(self, percent: float, *, of_kept: bool = False) -> float | None:
        """Returns a value, accurate to 1 %, that `percent` of the rows do not exceed; `None` without rows."""
        counts = self._kept if of_kept else self._kept + self._dropped
        rank = max(math.ceil(counts.total() * percent / 100), 1)
        for bucket in sorted(counts):
            rank -= counts[bucket]
            if rank <= 0:
                low, high = _range(bucket)
                value = min(max((low + high) / 2, self._min), self._max)
                return round(value) if self._is_whole else value
        return None

    def bars(self, count: int = 32) -> list[Bar]:
        """Returns bars from the lowest value to the highest, of equal width, or of equal ratios:
        `is_logarithmic`.

        A bucket counts for the bar that its middle is in.
        """
        if not self.kept + self.dropped:
            return []
        if self._min == self._max:
            return [Bar(self._min, self._max, self.kept, self.dropped)]
        edges = self._edges(count)
        kept, dropped = [0] * count, [0] * count
        for counts, filled in ((self._kept, kept), (self._dropped, dropped)):
            for bucket, rows in counts.items():
                low, high = _range(bucket)
                middle = min(max((low + high) / 2, self._min), self._max)
                filled[bisect_right(edges, middle, 1, count) - 1] += rows
        return [Bar(*bar) for bar in zip(edges[:-1], edges[1:], kept, dropped, strict=True)]

    def merge(self, other: Histogram) -> None:
        """Adds the rows of another histogram."""
        self.missing += other.missing
        self._min, self._max = min(self._min, other._min), max(self._max, other._max)
        self._is_whole &= other._is_whole
        self._kept += other._kept
        self._dropped += other._dropped

    @property
    def is_logarithmic(self) -> bool:
        """Returns whether bars have equal ratios: no value is negative, and some are far above most."""
        median, high = self.percentile(50) or 0.0, self.percentile(99) or 0.0
        return self._min >= 0 and high > _MAX_RATIO * median > 0

    def _edges(self, count: int) -> Sequence[float]:
        low, high = self._min, self._max
        if self.is_logarithmic:
            base = low or self.percentile(1) or self.percentile(50) or high
            inner = [base * (high / base) ** (step / count) for step in range(1, count)]
        else:
            inner = [low + (high - low) * step / count for step in range(1, count)]
        return [low, *inner, high]


def _bucket(value: float) -> int:
    """Returns 0 for 0, and otherwise a number that grows with the value."""
    fraction, exponent = math.frexp(abs(value))  # fraction from 0.5 up to 1
    if value == 0 or exponent <= _MIN_EXPONENT:
        return _ZERO
    if exponent > _MAX_EXPONENT:
        fraction, exponent = 0.5, _MAX_EXPONENT + 1
    step = 1 + (exponent - _MIN_EXPONENT - 1) * _STEPS + int((fraction - 0.5) * 2 * _STEPS)
    return step if value > 0 else -step


def _range(bucket: int) -> tuple[float, float]:
    """Returns the lowest and the highest value of a bucket."""
    if bucket == _ZERO:
        return 0.0, 0.0
    exponent, step = divmod(abs(bucket) - 1, _STEPS)
    exponent += _MIN_EXPONENT + 1
    low, high = (math.ldexp(0.5 + (step + more) / (2 * _STEPS), exponent) for more in (0, 1))
    return (low, high) if bucket > 0 else (-high, -low)
