"""Draws the dashboards as they would show servers under load: python -m tests.deploy.picture [--minutes 3]

The data are a real Prometheus's answers to the panels' own queries; the drawing is not Grafana's.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, PercentFormatter
from PIL import Image

from tests.deploy.grafana import DASHBOARDS, filled_in, loaded_servers, panels, tls_flags
from tests.deploy.prometheus import Prometheus, Series, programs
from tests.processes import ROOT

_FOLDER = ROOT / "deploy/grafana"
_WINDOW = "10s"  # of rates
_STEP_SECONDS = 2.0
_WAVE_SECONDS = 25.0
_COLUMNS, _UNIT_INCHES = 24, (0.5, 0.28)  # of Grafana's grid, for 1200 pixels at 100 an inch
_COLORS = ("#3f8f47", "#d9a514", "#3274d9", "#e0752d", "#c4162a", "#8f3bb8", "#0a7f8c", "#6d6d6d")
_NAMED = {"green": _COLORS[0], "orange": _COLORS[3], "red": _COLORS[4]}
_SHADES = 128  # of a picture, which halves its size

Panel: TypeAlias = dict[str, Any]


class Sheet:
    """One dashboard as a figure."""

    def __init__(self, name: str, prometheus: Prometheus, start: float, end: float) -> None:
        self._name = name
        self._prometheus = prometheus
        self._times = np.arange(start, end, _STEP_SECONDS)

    def save(self, path: Path) -> None:
        """Draws every panel in its place."""
        drawn = panels(self._name)
        kinds: dict[str, Callable[[Axes, Panel], None]] = {
            "timeseries": self._graph,
            "heatmap": self._heat,
            "stat": self._number,
            "state-timeline": self._timeline,
            "table": self._listing,
        }
        rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in drawn)
        figure = Figure(figsize=(_COLUMNS * _UNIT_INCHES[0], rows * _UNIT_INCHES[1]), dpi=100)
        for panel in DASHBOARDS[self._name]["panels"]:
            place = panel["gridPos"]
            top = 1 - place["y"] / rows
            if panel["type"] == "row":
                figure.text(0.006, top - 0.7 / rows, panel["title"], fontsize=11, weight="bold", va="center")
                continue
            left, width = place["x"] / _COLUMNS, place["w"] / _COLUMNS
            axes = figure.add_axes((left + 0.045, top - 6.0 / rows, width - 0.06, 4.9 / rows))
            figure.text(left + 0.012, top - 0.6 / rows, panel["title"], fontsize=9, va="center")
            kinds[panel["type"]](axes, panel)
        with BytesIO() as drawing:
            figure.savefig(drawing)
            Image.open(drawing).quantize(_SHADES).save(path, optimize=True)

    def _graph(self, axes: Axes, panel: Panel) -> None:
        field = panel["fieldConfig"]["defaults"]
        lines = [
            (_named(target["legendFormat"], series), self._values(series))
            for target in panel["targets"]
            for series in self._ask(target)
        ]
        if "stacking" in field["custom"]:
            names, values = zip(*lines, strict=True)
            axes.stackplot(self._minutes(), np.nan_to_num(values), labels=names, colors=_COLORS, alpha=0.7)
        else:
            for number, (name, values) in enumerate(lines):
                color = _COLORS[number % len(_COLORS)]
                axes.plot(self._minutes(), values, label=name, color=color, linewidth=1, clip_on=False)
        axes.set_ylim(0, axes.get_ylim()[1] if any(np.nanmax(values) > 0 for _, values in lines) else 1)
        for step in field.get("thresholds", {"steps": []})["steps"][1:]:
            if step["value"] < axes.get_ylim()[1]:
                axes.axhline(step["value"], color=_NAMED[step["color"]], linestyle="--", linewidth=0.8)
        _finish(axes, field["unit"])
        axes.legend(loc="upper left", bbox_to_anchor=(-0.12, -0.1), fontsize=7, frameon=False, ncols=3,
                    columnspacing=0.8, handlelength=1, borderaxespad=0)  # fmt: skip

    def _heat(self, axes: Axes, panel: Panel) -> None:
        (target,) = panel["targets"]
        cumulative = sorted(self._ask(target), key=lambda series: float(series["metric"]["le"]))
        counts = np.diff([self._values(series) for series in cumulative], axis=0, prepend=0)
        used = np.flatnonzero(np.nansum(counts, axis=1))
        first, last = used[0], used[-1] + 1
        axes.pcolormesh(self._minutes(), np.arange(last - first), counts[first:last],
                        cmap="Oranges", shading="nearest", norm=PowerNorm(0.5))  # fmt: skip
        _finish(axes, panel["fieldConfig"]["defaults"]["unit"], grid=False)
        edges = [float(series["metric"]["le"]) for series in cumulative[first:last]]
        show = _formatter(panel["fieldConfig"]["defaults"]["unit"])
        axes.set_yticks(range(last - first), [show(edge, None) for edge in edges])

    def _number(self, axes: Axes, panel: Panel) -> None:
        field = panel["fieldConfig"]["defaults"]
        (series,) = self._ask(panel["targets"][0])
        value = float(series["values"][-1][1])
        steps = field["thresholds"]["steps"]
        color = [step["color"] for step in steps if step["value"] is None or step["value"] <= value][-1]
        axes.set_facecolor(_NAMED[color])
        text = f"{value / 86400:.0f} days" if field["unit"] == "s" else f"{value:g}"
        axes.text(0.5, 0.5, text, fontsize=20, color="white", ha="center", va="center")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)

    def _timeline(self, axes: Axes, panel: Panel) -> None:
        states = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
        found = self._ask(panel["targets"][0])
        for row, series in enumerate(found):
            colors = [_NAMED[states[f"{value:g}"]["color"]] for value in self._values(series)]
            axes.bar(self._minutes(), 0.8, _STEP_SECONDS / 60, row - 0.4, color=colors)
        _finish(axes, "none", grid=False)
        axes.set_yticks(range(len(found)), [series["metric"]["instance"] for series in found])
        handles = [axes.plot([], color=_NAMED[state["color"]], linewidth=5)[0] for state in states.values()]
        axes.legend(handles, [state["text"] for state in states.values()], loc="upper left", fontsize=7.5,
                    bbox_to_anchor=(-0.05, -0.1), ncols=3, frameon=False, borderaxespad=0)  # fmt: skip

    def _listing(self, axes: Axes, panel: Panel) -> None:
        order = panel["transformations"][0]["options"]
        head = list(order["indexByName"])
        rows = []
        for series in self._prometheus.query(filled_in(panel["targets"][0]["expr"], _WINDOW)):
            cells = {**series["metric"], "Value": f"{float(series['value'][1]):.6g}"}
            rows.append([cells[name][:12] for name in head])
        names = [order["renameByName"].get(name, name) for name in head]
        axes.axis("off")
        drawn = axes.table(rows, colLabels=names, loc="upper left", edges="horizontal", cellLoc="left")
        drawn.auto_set_font_size(False)
        drawn.set_fontsize(8)

    def _ask(self, target: dict[str, Any]) -> list[Series]:
        expr = filled_in(target["expr"], _WINDOW)
        return self._prometheus.query_range(expr, self._times[0], self._times[-1], _STEP_SECONDS)

    def _values(self, series: Series) -> np.ndarray:
        known = {round(moment, 1): float(value) for moment, value in series["values"]}
        return np.array([known.get(round(moment, 1), math.nan) for moment in self._times])

    def _minutes(self) -> np.ndarray:
        return (self._times - self._times[0]) / 60


def draw(minutes: float, folder: Path) -> None:
    """Loads servers for some time and saves a picture for each dashboard."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        if (found := programs(place)) is None:
            raise SystemExit("there is no prometheus here, and Debian's package cannot be fetched")
        called = {"align-0": (), "align-1": ("--workers", "2")}
        with loaded_servers(found, place, called, {"align-2": tls_flags(place)}, _WAVE_SECONDS) as prometheus:
            time.sleep(_WAVE_SECONDS)  # windows fill
            start = time.time()
            time.sleep(60 * minutes)
            for board in DASHBOARDS:
                Sheet(board, prometheus, start, time.time()).save(folder / f"{board}.png")


def _named(legend: str, series: Series) -> str:
    for label, value in series["metric"].items():
        legend = legend.replace(f"{{{{{label}}}}}", value)
    return legend


def _finish(axes: Axes, unit: str, *, grid: bool = True) -> None:
    axes.yaxis.set_major_formatter(_formatter(unit))
    axes.xaxis.set_major_formatter("{x:g} min")
    axes.tick_params(labelsize=7.5, length=0)
    axes.spines[:].set_visible(False)
    axes.margins(x=0)
    if grid:
        axes.grid(color="#e4e4e4", linewidth=0.5)


def _formatter(unit: str) -> Formatter:
    if unit == "percentunit":
        return PercentFormatter(1, decimals=0)
    if unit in ("s", "bytes"):
        return EngFormatter(unit[0].replace("b", "B"))
    per_second = " /s" if unit in ("reqps", "ops") else ""
    return FuncFormatter(lambda value, _: f"{value:g}{per_second}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.picture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="of load (default: 3)")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help=f"for the pictures (default: {_FOLDER})")
    arguments = parser.parse_args()
    draw(arguments.minutes, arguments.folder)
