"""Converts a sweep to data for JSON."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from alignserve._bench.histogram import Histogram
from alignserve._bench.load import OpenLoop
from alignserve._bench.recorder import Measurement
from alignserve._bench.sweep import Sweep

SCHEMA_VERSION = (
    1  # incremented when a field changes its meaning or is removed; new fields may be added at any time
)
PERCENTILES = {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "p99_9": 99.9}
_SPREAD_ROWS = 40


def document(sweep: Sweep) -> dict[str, Any]:
    """Returns all results as plain values; names of durations include their unit."""
    return {
        "schema_version": SCHEMA_VERSION,
        "started_at": sweep.started_at.isoformat(timespec="seconds"),
        "server": sweep.server,
        "model": asdict(sweep.model),
        "client": {
            "version": sweep.client_version,
            "python": platform.python_version(),
            "grpcio": version("grpcio"),
            "cores": os.cpu_count(),
        },
        "settings": dict(sweep.settings),
        "was_interrupted": sweep.was_interrupted,
        "measurements": [_measurement(one) for one in sweep.measurements],
    }


def _measurement(one: Measurement) -> dict[str, Any]:
    return {
        one.load.mode: one.load.value,
        "seconds": _rounded(one.seconds),
        "requests": one.requests,
        "succeeded": one.succeeded,
        "failed": one.failed,
        "unfinished": one.unfinished,
        "requests_per_second": _rounded(one.requests_per_second),
        "items_per_second": _rounded(one.items_per_second),
        "failures": [asdict(found.example) | {"count": found.count} for found in one.failures.values()],
        "latency_ms": _durations(one.latency),
        "latency_spread_ms": [
            [_ms(low), _ms(high), count] for low, high, count in one.latency.spread(_SPREAD_ROWS)
        ],
        "send_delay_ms": _durations(one.send_delay) if isinstance(one.load, OpenLoop) else None,
        "client_cores": _rounded(one.client_cores),
        "was_interrupted": one.was_interrupted,
    }


def _durations(durations: Histogram) -> dict[str, float] | None:
    if not durations.count:
        return None
    percentiles = {name: _ms(durations.percentile(percent)) for name, percent in PERCENTILES.items()}
    return {
        "mean": _ms(durations.mean),
        "min": _ms(durations.min),
        **percentiles,
        "max": _ms(durations.max),
    }


def _ms(seconds: float) -> float:
    return _rounded(seconds * 1e3)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
