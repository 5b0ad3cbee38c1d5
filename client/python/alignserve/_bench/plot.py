"""Plots a sweep: latency and throughput against load."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from alignserve._bench.sweep import Sweep


def save_plot(sweep: Sweep, path: Path) -> None:
    """Plots p50 and p99 above requests per second; the file's suffix selects the format."""
    # Imported here, by name: it is large and an optional extra.
    figure: Any = importlib.import_module("matplotlib.figure").Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    done = [one for one in sweep.measurements if one.succeeded]
    done.sort(key=lambda one: one.load.value)
    loads = [one.load.value for one in done]
    for percent in (50, 99):
        values = [one.latency.percentile(percent) * 1e3 for one in done]
        above.plot(loads, values, marker="o", label=f"p{percent}")
    below.plot(loads, [one.requests_per_second for one in done], marker="o", color="tab:green")
    above.set_ylabel("latency, ms")
    above.set_ylim(bottom=0)
    above.legend()
    below.set_ylabel("requests/s")
    below.set_ylim(bottom=0)
    below.set_xlabel(_axis(sweep))
    figure.suptitle(f"{sweep.settings['work']}, {sweep.model.model_id} on {sweep.model.device}")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def _axis(sweep: Sweep) -> str:
    is_rate = sweep.settings["rate"] is not None
    return "requests sent per second" if is_rate else "requests in flight"
