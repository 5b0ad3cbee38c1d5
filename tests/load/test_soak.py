"""What the soak test reports as a leak."""

from __future__ import annotations

import random

import pytest

from tests.load.soak import Sample, leaks

_FLAT = {"rss_mb": 300.0, "fds": 20.0, "threads": 12.0, "tasks": 30.0}
_NOISE = {"rss_mb": 3.0, "fds": 1.0, "threads": 1.0, "tasks": 5.0}


def _samples(*, grows: str = "", by: float = 0.0, until: float = 1.0) -> list[Sample]:
    """Builds 120 samples of 100,000 requests; `grows` grows by `by` per 10,000 requests."""
    rng = random.Random(1)
    samples = []
    for number in range(1, 121):
        requests = number * 833
        grown = by * min(requests, until * 100_000) / 10_000
        values = {
            name: level + rng.uniform(-1, 1) * _NOISE[name] + (grown if name == grows else 0.0)
            for name, level in _FLAT.items()
        }
        samples.append(Sample(requests, **values))
    return samples


def test_noise_is_not_a_leak() -> None:
    """Memory varies by some megabytes, and the number of tasks varies."""
    assert leaks(_samples()) == []


@pytest.mark.parametrize(
    ("grows", "by", "name"),
    [
        ("rss_mb", 2.0, "resident memory"),
        ("fds", 4.0, "open files"),
        ("threads", 4.0, "threads"),
        ("tasks", 10.0, "asyncio tasks"),
    ],
)
def test_growth_with_every_request_is_a_leak(grows: str, by: float, name: str) -> None:
    """Growth of twice the limit is detected despite the noise."""
    assert leaks(_samples(grows=grows, by=by)) == [name]


def test_growth_that_stops_by_half_time_is_not_a_leak() -> None:
    """Caches fill up and pools start only once."""
    assert leaks(_samples(grows="rss_mb", by=10.0, until=0.45)) == []


def test_one_bump_is_not_a_leak() -> None:
    """Garbage may be collected late, and pages may be returned late."""
    samples = _samples()
    bump = samples[100]
    samples[100] = Sample(bump.requests, bump.rss_mb + 500, bump.fds, bump.threads, bump.tasks)

    assert leaks(samples) == []
