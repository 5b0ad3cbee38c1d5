"""A histogram of numbers of any size, for kept and dropped rows: streaming, bounded, the same in any order of rows."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_STEPS = 32  # buckets from one power of two to the next, so a bucket is at most 3 % wide
_MIN_EXPONENT, _MAX_EXPONENT = -30, 64  # smaller numbers count as 0, larger ones as 2**64
_ZERO = 0
_MAX_RATIO = 100.0  # if the 99th percentile is this many times the lowest value, bars have equal ratios


class Bar(NamedTuple):
    """A range of values, from `low` up to `high`, and how many rows have one."""

    low: float
    high: float
    kept: int
    dropped: int


class Histogram:
    """Counts numbers in at most 6,000 buckets. Counts, minimum and maximum are exact.

    Attributes:
        missing: Number of rows without a value: `None`, NaN or infinite.
    """

    def __init__(self) -> None:
        self.missing = 0
        self._min = math.inf
        self._max = -math.inf
        self._kept: Counter[int] = Counter()
        self._dropped: Counter[int] = Counter()

    def add(self, value: float | None, *, is_kept: bool) -> None:
        """Counts one row's value."""
        if value is None or not math.isfinite(value):
            self.missing += 1
            return
        self._min, self._max = min(self._min, value), max(self._max, value)
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
        """Returns a value, accurate to 3 %, that `percent` of the rows do not exceed; `None` without rows."""
        counts = self._kept if of_kept else self._kept + self._dropped
        rank = max(math.ceil(counts.total() * percent / 100), 1)
        for bucket in sorted(counts):
            rank -= counts[bucket]
            if rank <= 0:
                low, high = _range(bucket)
                return min(max((low + high) / 2, self._min), self._max)
        return None

    def bars(self, count: int = 32) -> list[Bar]:
        """Returns bars of equal width from the lowest value to the highest, or of equal ratios if values vary a lot.

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
        self._kept += other._kept
        self._dropped += other._dropped

    def state(self) -> dict[str, Any]:
        """Returns all of it as JSON has it, for `from_state`."""
        has_values = self.kept + self.dropped > 0
        return {
            "missing": self.missing,
            "range": [self._min, self._max] if has_values else None,
            "kept": sorted(self._kept.items()),
            "dropped": sorted(self._dropped.items()),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Histogram:
        """Returns the histogram that had this state."""
        made = cls()
        made.missing = state["missing"]
        made._min, made._max = state["range"] or (math.inf, -math.inf)
        made._kept, made._dropped = Counter(dict(state["kept"])), Counter(dict(state["dropped"]))
        return made

    def _edges(self, count: int) -> Sequence[float]:
        first, last = self.percentile(1) or 0.0, self.percentile(99) or 0.0
        low, high = self._min, self._max
        base = low or first
        if low >= 0 and base > 0 and last > _MAX_RATIO * base:
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
