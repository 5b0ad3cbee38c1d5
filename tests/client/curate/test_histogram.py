"""Histograms of measures are streaming, bounded, and the same for any order of the rows."""

from __future__ import annotations

import json
import math
import random

import pytest
from alignserve.curate.histogram import Histogram


def _of(values: list[float], *, is_kept: bool = True) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value, is_kept=is_kept)
    return histogram


def test_every_row_is_in_one_bar() -> None:
    """Kept and dropped rows are counted apart."""
    histogram = _of([float(value) for value in range(1000)])
    for value in range(0, 1000, 10):
        histogram.add(value, is_kept=False)

    bars = histogram.bars()

    assert (sum(bar.kept for bar in bars), sum(bar.dropped for bar in bars)) == (1000, 100)
    assert (bars[0].low, bars[-1].high) == (0, 999)
    assert all(25 <= bar.kept <= 38 for bar in bars)


def test_missing_values_are_counted_apart() -> None:
    """`None`, NaN and infinity are in no bar."""
    histogram = _of([1.0, math.nan, math.inf])
    histogram.add(None, is_kept=True)

    assert (histogram.missing, histogram.kept) == (3, 1)


@pytest.mark.parametrize("values", [[], [0.0], [-0.31] * 5, [1e-300, 1e300, -1e300], [5e-324]])
def test_odd_values_have_bars(values: list[float]) -> None:
    """None, one, equal ones, and ones beyond all buckets."""
    bars = _of(values).bars()

    assert sum(bar.kept for bar in bars) == len(values)


@pytest.mark.parametrize("percent", [1, 25, 50, 75, 99, 100])
def test_percentiles_are_accurate(percent: float) -> None:
    """Within 3 % of the exact value, for sizes as well as for similarities."""
    values = [random.Random(1).lognormvariate(10, 2) for _ in range(1)] + [
        random.Random(seed).lognormvariate(10, 2) for seed in range(2000)
    ]
    exact = sorted(values)[math.ceil(len(values) * percent / 100) - 1]

    assert _of(values).percentile(percent) == pytest.approx(exact, rel=0.03)
    assert _of([-value for value in values]).percentile(100 - percent + 0.01) == pytest.approx(-exact, rel=0.05)


def test_values_of_all_sizes_have_bars_of_equal_ratios() -> None:
    """Otherwise most would be in the first bar."""
    bars = _of([2.0**power for power in range(40)]).bars(8)

    assert all(bar.kept for bar in bars)


def test_parts_in_any_order_are_the_same() -> None:
    """So that shards can be counted apart, and a run can resume."""
    values = [random.Random(2).gauss(0.1, 0.1) for _ in range(500)]
    whole = _of(values)

    merged = _of(values[300:])
    merged.merge(Histogram.from_state(json.loads(json.dumps(_of(values[:300]).state()))))

    assert merged.state() == whole.state()
    assert merged.bars() == whole.bars()


def test_its_size_is_bounded() -> None:
    """Whatever the values are."""
    rng = random.Random(3)

    histogram = _of([rng.choice([-1, 1]) * 2 ** rng.uniform(-100, 100) for _ in range(30_000)])

    assert len(histogram.state()["kept"]) <= 6100
