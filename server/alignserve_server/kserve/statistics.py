"""What each model has served through this protocol since the start: requests, items and runs.

A request is a call of ModelInfer or a message of a stream. An item is one of its images or texts, of which a
pair is two. A run is a batch on the device; it counts for each model that had items in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from alignserve_server.api import Timings
from alignserve_server.kserve.models import VERSION

_RECENT_RUNS = 4096  # requests that share a run end at about the same time


@dataclass(slots=True)
class Durations:
    """A number of events, and how long they took together."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        """Adds events that took a time together."""
        self.count += count
        self.seconds += seconds

    def as_fields(self) -> dict[str, int]:
        """Returns the fields of `StatisticDuration`."""
        return {"count": self.count, "ns": round(self.seconds * 1e9)}


@dataclass(slots=True)
class ServedRequest:
    """A request that is being answered."""

    items: int = 0
    timings: Timings | None = None  # set once it is answered
    output_seconds: float = 0.0  # to build the response


class ModelCounts:
    """The counts of one model."""

    def __init__(self) -> None:
        self._durations = {name: Durations() for name in _DURATIONS}
        self._items = self._runs = self._last_ms = 0
        self._recent_runs: dict[Any, None] = {}  # in the order of their first request

    def succeed(self, request: ServedRequest, seconds: float) -> None:
        """Counts a request that was answered in a time."""
        timings = request.timings
        assert timings is not None  # noqa: S101 — every answer has them
        add = {name: duration.add for name, duration in self._durations.items()}
        add["success"](seconds)
        add["queue"](timings.queue_seconds)
        add["compute_input"](timings.preprocess_seconds)
        add["compute_infer"](timings.compute_seconds)
        add["compute_output"](request.output_seconds)
        add["cache_hit"](0.0, timings.cached_item_count)
        self._items += request.items - timings.cached_item_count
        self._count_runs(timings.runs)
        self._last_ms = time.time_ns() // 1_000_000

    def fail(self, seconds: float) -> None:
        """Counts a request that failed after a time."""
        self._durations["fail"].add(seconds)

    def as_fields(self) -> dict[str, Any]:
        """Returns fields of `ModelStatistics`. Cache hits count neither as items nor as runs."""
        return {
            "last_inference": self._last_ms,
            "inference_count": self._items,
            "execution_count": self._runs,
            "inference_stats": {name: duration.as_fields() for name, duration in self._durations.items()},
        }

    def _count_runs(self, runs: Iterable[Any]) -> None:
        """Counts the runs that no earlier request was part of."""
        for run in runs:
            if run not in self._recent_runs:
                self._runs += 1
                self._recent_runs[run] = None
        while len(self._recent_runs) > _RECENT_RUNS:
            del self._recent_runs[next(iter(self._recent_runs))]


_DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit")


class Statistics:
    """The counts of all models."""

    def __init__(self, models: Iterable[str], clock: Callable[[], float] = time.perf_counter) -> None:
        """Starts at zero; the clock returns seconds."""
        self._models = {name: ModelCounts() for name in models}
        self._clock = clock

    @contextmanager
    def request(self, model: str) -> Iterator[ServedRequest]:
        """Counts a request for the duration of the block: as failed if the block raises."""
        start, counts, request = self._clock(), self._models[model], ServedRequest()
        try:
            yield request
        except BaseException:
            counts.fail(self._clock() - start)
            raise
        counts.succeed(request, self._clock() - start)

    def of(self, models: Iterable[str]) -> list[dict[str, Any]]:
        """Returns the fields of each model's `ModelStatistics`."""
        return [{"name": name, "version": VERSION, **self._models[name].as_fields()} for name in models]
