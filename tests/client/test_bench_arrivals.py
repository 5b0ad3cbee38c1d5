"""The times at which requests of an open loop are due."""

from __future__ import annotations

import itertools
from statistics import fmean, pstdev

import pytest
from alignserve._bench.arrivals import arrival_seconds


def test_constant_arrivals_do_not_drift() -> None:
    """The millionth request is due at exactly the right time, not at a sum of rounded steps."""
    due = next(itertools.islice(arrival_seconds(30, "constant", 0), 3_000_000, None))

    assert due == 100_000.0


def test_poisson_arrivals_keep_the_rate() -> None:
    """Gaps have the mean given by the rate, and the variance of an exponential distribution."""
    times = list(itertools.islice(arrival_seconds(50, "poisson", 1), 20_000))

    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert fmean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert pstdev(gaps) == pytest.approx(1 / 50, rel=0.05)


def test_a_seed_repeats_the_times() -> None:
    """Two runs with the same seed send at the same times; another seed gives other times."""
    one, same, other = (
        list(itertools.islice(arrival_seconds(50, "poisson", seed), 100)) for seed in (1, 1, 2)
    )

    assert one == same
    assert one != other
