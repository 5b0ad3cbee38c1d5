"""A histogram of durations with logarithmic buckets: 40 kB, accurate to half a percent."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator

_SUB_BITS = 7  # 128 buckets from one power of two to the next, so a bucket is less than 0.8 % wide
_LONGEST = (1 << 43) - 1  # nanoseconds, 2.4 hours; longer ones fall into the last bucket


def _bucket(nanoseconds: int) -> int:
    shift = max(nanoseconds.bit_length() - _SUB_BITS - 1, 0)
    return (shift << _SUB_BITS) + (nanoseconds >> shift)


def _lower(bucket: int) -> int:
    shift = max((bucket >> _SUB_BITS) - 1, 0)
    return (bucket - (shift << _SUB_BITS)) << shift


class Histogram:
    """Counts durations, in seconds. Minimum, maximum and mean are exact."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = 0.0
        self._min = math.inf
        self._max = 0.0
        self._buckets = array("Q", bytes(8 * (_bucket(_LONGEST) + 1)))

    def record(self, seconds: float) -> None:
        """Counts one duration; a negative one, from rounding, is 0."""
        seconds = max(seconds, 0.0)
        self.count += 1
        self._sum += seconds
        self._min = min(self._min, seconds)
        self._max = max(self._max, seconds)
        self._buckets[_bucket(min(int(seconds * 1e9), _LONGEST))] += 1

    @property
    def min(self) -> float:
        """Returns the shortest duration, or 0 if empty."""
        return self._min if self.count else 0.0

    @property
    def max(self) -> float:
        """Returns the longest duration, or 0 if empty."""
        return self._max

    @property
    def mean(self) -> float:
        """Returns the mean duration, or 0 if empty."""
        return self._sum / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """Returns the shortest duration that `percent` of all durations do not exceed, or 0 if empty."""
        rank = max(math.ceil(round(self.count * percent / 100, 6)), 1)  # round: 99.9 is not a binary fraction
        if rank >= self.count:
            return self.max
        seen = 0
        for low, high, count in self._filled():
            seen += count
            if seen >= rank:
                return min(max((low + high) / 2, self.min), self.max)
        return self.max

    def spread(self, rows: int) -> list[tuple[float, float, int]]:
        """Returns rows of (from, to, count) with equal ratios, from the shortest duration to the longest."""
        if not self.count:
            return []
        low, high = max(self.min, 1e-9), max(self.max, 1e-9)
        rows = rows if high > low * 1.01 else 1  # less than a bucket apart
        edges = [low * (high / low) ** (row / rows) for row in range(rows + 1)]
        counts = [0] * rows
        for bucket_low, bucket_high, count in self._filled():
            middle = min(max((bucket_low + bucket_high) / 2, low), high)
            row = 0 if rows == 1 else int(math.log(middle / low) / math.log(high / low) * rows)
            counts[min(row, rows - 1)] += count
        return list(zip(edges, edges[1:], counts, strict=False))

    def _filled(self) -> Iterator[tuple[float, float, int]]:
        for bucket, count in enumerate(self._buckets):
            if count:
                yield _lower(bucket) / 1e9, _lower(bucket + 1) / 1e9, count
