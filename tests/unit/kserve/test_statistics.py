"""Statistics: requests, items and runs are counted apart."""

from __future__ import annotations

import pytest
from alignserve_server.api import Timings
from alignserve_server.kserve.statistics import Statistics

from tests.unit.fakes import FakeClock


def served(statistics: Statistics, items: int, *runs: tuple[int, int], cached: int = 0) -> None:
    with statistics.request("text") as request:
        request.items = items
        request.timings = Timings(0.1, 0.2, 0.3, items, cached, frozenset(runs))


def test_a_run_counts_once_however_many_requests_share_it() -> None:
    """Two requests in one batch are two requests, three items and one run."""
    statistics = Statistics(["text"])

    served(statistics, 1, (0, 7))
    served(statistics, 2, (0, 7))
    served(statistics, 1, (1, 7))

    (stats,) = statistics.of(["text"])
    assert stats["inference_stats"]["success"]["count"] == 3
    assert (stats["inference_count"], stats["execution_count"]) == (4, 2)


def test_items_from_the_cache_are_counted_as_hits() -> None:
    """They were not in a run, so they do not count as inferences."""
    statistics = Statistics(["text"])

    served(statistics, 3, (0, 1), cached=2)

    (stats,) = statistics.of(["text"])
    assert stats["inference_count"] == 1
    assert stats["inference_stats"]["cache_hit"]["count"] == 2


def test_failures_count_apart() -> None:
    """A request that raises, cancelled ones included, has failed."""
    statistics = Statistics(["text"])

    with pytest.raises(KeyboardInterrupt), statistics.request("text"):
        raise KeyboardInterrupt

    (stats,) = statistics.of(["text"])
    durations = stats["inference_stats"]
    assert (durations["fail"]["count"], durations["success"]["count"]) == (1, 0)


def test_durations_are_nanoseconds_of_all_requests_together() -> None:
    """Clients divide them by the count."""
    clock = FakeClock()
    statistics = Statistics(["text"], clock)

    for _ in range(2):
        with statistics.request("text") as request:
            request.items, request.timings = 1, Timings(0.1, 0.2, 0.3, 1, 0)
            clock.advance(1.0)

    (stats,) = statistics.of(["text"])
    durations = stats["inference_stats"]
    assert durations["success"] == {"count": 2, "ns": 2_000_000_000}
    assert durations["queue"] == {"count": 2, "ns": 400_000_000}
    assert durations["compute_input"] == {"count": 2, "ns": 200_000_000}
    assert durations["compute_infer"] == {"count": 2, "ns": 600_000_000}


def test_recent_runs_are_forgotten() -> None:
    """Memory does not grow with the number of runs."""
    statistics = Statistics(["text"])

    for number in range(10_000):
        served(statistics, 1, (0, number))

    (stats,) = statistics.of(["text"])
    assert stats["execution_count"] == 10_000
    assert len(statistics._models["text"]._recent_runs) <= 4096
