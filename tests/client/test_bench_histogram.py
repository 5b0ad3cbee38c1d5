"""The histogram of durations is accurate and bounded."""

from __future__ import annotations

import random

import pytest
from alignserve._bench.histogram import Histogram

PERCENTS = (1, 50, 90, 95, 99, 99.9)


def filled(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@pytest.mark.parametrize("scale", [1e-8, 1e-6, 1e-3, 1.0, 10.0])
@pytest.mark.parametrize("spread", [0.1, 2.0])
def test_percentiles_are_exact_to_one_percent(scale: float, spread: float) -> None:
    """From nanoseconds to minutes, percentiles are those of the sorted list within 1 %."""
    chance = random.Random(7)
    values = sorted(scale * chance.lognormvariate(0, spread) for _ in range(10_000))

    histogram = filled(values)

    for percent in PERCENTS:
        exact = values[round(percent * 100) - 1]
        assert histogram.percentile(percent) == pytest.approx(exact, rel=0.01, abs=1e-9)


def test_ends_and_mean_are_exact() -> None:
    """The shortest, the longest and the mean are not rounded to buckets."""
    histogram = filled([0.001234567, 0.5, 1.000000123])

    assert (histogram.min, histogram.max) == (0.001234567, 1.000000123)
    assert histogram.percentile(100) == 1.000000123
    assert histogram.mean == pytest.approx(sum((0.001234567, 0.5, 1.000000123)) / 3)


def test_one_duration_is_every_percentile() -> None:
    """A single value is every percentile."""
    histogram = filled([0.0123])

    assert {histogram.percentile(percent) for percent in (0, *PERCENTS, 100)} == {0.0123}


def test_nothing_recorded_is_zero() -> None:
    """An empty histogram returns zeros, as for a run in which every request failed."""
    histogram = Histogram()

    assert (histogram.min, histogram.mean, histogram.percentile(99), histogram.max) == (0, 0, 0, 0)
    assert histogram.spread(10) == []


def test_extreme_durations_are_counted() -> None:
    """Zero, negative durations from rounding, and days fall into the outermost buckets."""
    histogram = filled([0.0, -1e-9, 1e6])

    assert histogram.count == 3
    assert (histogram.min, histogram.max) == (0.0, 1e6)


@pytest.mark.parametrize("values", [[0.01], [0.01, 0.010001], [0.0, 0.0], [0.001 * n for n in range(1, 500)]])
def test_spread_has_every_duration_once(values: list[float]) -> None:
    """The rows of the chart add up, and cover the shortest to the longest duration."""
    rows = filled(values).spread(12)

    assert sum(count for _, _, count in rows) == len(values)
    assert rows[-1][1] == pytest.approx(max(*values, 1e-9))
