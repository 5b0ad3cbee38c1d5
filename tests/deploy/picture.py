"""Draws the dashboards as they would look after a day with an incident: python -m tests.deploy.picture

The data are a real Prometheus's answers to the panels' own queries; Grafana does not draw them. The day of
`day.py` is compressed into a few minutes, and Prometheus's rules with it.
"""

from __future__ import annotations

import argparse
import math
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, PercentFormatter
from PIL import Image

from tests.deploy.day import HOURS, running_day
from tests.deploy.grafana import DASHBOARDS, filled_in, panels
from tests.deploy.prometheus import Prometheus, Series, programs
from tests.processes import ROOT

_FOLDER = ROOT / "deploy/grafana"
_WINDOW = "10s"  # for rates
_POINTS = 360  # per line
_COLUMNS, _UNIT_INCHES, _DPI = 24, (0.5, 0.28), 100  # of Grafana's grid, for 1200 pixels
_COLORS = ("#3f8f47", "#d9a514", "#3274d9", "#e0752d", "#c4162a", "#8f3bb8", "#0a7f8c", "#6d6d6d")
_NAMED = {
    "green": _COLORS[0],
    "yellow": _COLORS[1],
    "blue": _COLORS[2],
    "orange": _COLORS[3],
    "red": _COLORS[4],
    "purple": _COLORS[5],
    "dark-red": "#7d0b1b",
}
_LEGEND_POINTS, _CHARACTER_PIXELS, _LEGEND_PIXELS = 7, 5.2, 14  # font, mean character, line
_FRAME, _GREY = "#d8d8d8", "#8e8e8e"
_SHADES = 128  # per picture; halves the file size

Panel: TypeAlias = dict[str, Any]


class Sheet:
    """One dashboard as a figure."""

    def __init__(self, name: str, prometheus: Prometheus, start: float, end: float) -> None:
        self._name = name
        self._prometheus = prometheus
        self._step_seconds = (end - start) / _POINTS
        self._times = np.linspace(start, end, _POINTS, endpoint=False)
        self._day_seconds = end - start

    def save(self, path: Path) -> None:
        """Draws every panel at its position."""
        kinds: dict[str, Callable[[Axes, Panel], None]] = {
            "timeseries": self._graph,
            "heatmap": self._heat,
            "stat": self._number,
            "state-timeline": self._timeline,
            "table": self._listing,
        }
        rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels(self._name))
        figure = Figure(figsize=(_COLUMNS * _UNIT_INCHES[0], rows * _UNIT_INCHES[1]), dpi=_DPI)
        for panel in DASHBOARDS[self._name]["panels"]:
            place = panel["gridPos"]
            top = 1 - place["y"] / rows
            if panel["type"] == "row":
                figure.text(0.006, top - 0.6 / rows, panel["title"], fontsize=11, weight="bold", va="center")
                continue
            left, width = place["x"] / _COLUMNS, place["w"] / _COLUMNS
            bottom = top - place["h"] / rows
            figure.add_artist(_frame(left, bottom, width, place["h"] / rows, rows))
            figure.text(left + 0.01, top - 0.75 / rows, panel["title"], fontsize=9, va="center")
            axes = figure.add_axes((left + 0.045, bottom + 1 / rows, width - 0.06, (place["h"] - 2.5) / rows))
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
        lines = [(name, values) for name, values in lines if not np.isnan(values).all()]
        colors = _colors(panel, [name for name, _ in lines])
        if "stacking" in field["custom"] and lines:
            names, values = zip(*lines, strict=True)
            axes.stackplot(self._hours(), np.nan_to_num(values), labels=names, colors=colors, alpha=0.75)
        else:
            for (name, values), color in zip(lines, colors, strict=True):
                axes.plot(self._hours(), values, label=name, color=color, linewidth=1, clip_on=False)
        axes.set_ylim(0, axes.get_ylim()[1] if any(np.nanmax(values) > 0 for _, values in lines) else 1)
        for step in field.get("thresholds", {"steps": []})["steps"][1:]:
            if step["value"] < axes.get_ylim()[1]:
                axes.axhline(step["value"], color=_NAMED[step["color"]], linestyle="--", linewidth=0.8)
        self._annotate(axes)
        _finish(axes, field["unit"])
        _place_legend(axes, [name for name, _ in lines])

    def _annotate(self, axes: Axes) -> None:
        """Marks the dashboard's annotations: alerts that start firing, and process starts."""
        for moment, name in self._alerts:
            axes.axvline(self._hour(moment), color=_NAMED["red"], linewidth=0.8, linestyle=":")
            axes.annotate(
                *(name, (self._hour(moment), 1), (2, -2), ("data", "axes fraction"), "offset points"),
                fontsize=6,
                color=_NAMED["red"],
                va="top",
            )
        for moment in self._starts:
            axes.axvline(self._hour(moment), color=_NAMED["blue"], linewidth=0.8, linestyle=":")

    @cached_property
    def _alerts(self) -> list[tuple[float, str]]:
        _, alerts = DASHBOARDS[self._name]["annotations"]["list"]
        found: dict[str, float] = {}
        for series in self._ask(alerts["target"]):
            name, moment = series["metric"]["alertname"], float(series["values"][0][0])
            found[name] = min(moment, found.get(name, moment))
        # Alerts at the very beginning are due to Prometheus's own startup.
        return [
            (moment, name.removeprefix("Alignserve"))
            for name, moment in found.items()
            if moment > self._times[_POINTS // 100]
        ]

    @cached_property
    def _starts(self) -> list[float]:
        starts, _ = DASHBOARDS[self._name]["annotations"]["list"]
        moments = {
            float(value) / 1000 for series in self._ask(starts["target"]) for _, value in series["values"]
        }
        return [moment for moment in moments if moment > self._times[0]]

    def _heat(self, axes: Axes, panel: Panel) -> None:
        (target,) = panel["targets"]
        cumulative = sorted(self._ask(target), key=lambda series: float(series["metric"]["le"]))
        counts = np.diff([self._values(series) for series in cumulative], axis=0, prepend=0)
        used = np.flatnonzero(np.nansum(counts, axis=1))
        first, last = (used[0], used[-1] + 1) if used.size else (0, len(cumulative))
        axes.pcolormesh(self._hours(), np.arange(last - first), counts[first:last],
                        cmap="Oranges", shading="nearest", norm=PowerNorm(0.5))  # fmt: skip
        _finish(axes, panel["fieldConfig"]["defaults"]["unit"], grid=False)
        edges = [float(series["metric"]["le"]) for series in cumulative[first:last]]
        show = _formatter(panel["fieldConfig"]["defaults"]["unit"])
        axes.set_yticks(range(last - first), [show(edge, None) for edge in edges])

    def _number(self, axes: Axes, panel: Panel) -> None:
        field = panel["fieldConfig"]["defaults"]
        found = self._ask(panel["targets"][0])
        value = float(found[0]["values"][-1][1]) if found else math.nan
        steps = field["thresholds"]["steps"]
        reached = [step["color"] for step in steps if step["value"] is None or step["value"] <= value]
        axes.set_facecolor(_GREY if math.isnan(value) else _NAMED[reached[-1]])
        text = field["noValue"] if math.isnan(value) else _written(value, field["unit"])
        axes.text(0.5, 0.5, text, fontsize=17, color="white", ha="center", va="center")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        box = axes.get_position()
        row = box.height / (panel["gridPos"]["h"] - 2.5)
        axes.set_position((box.x0 - 0.035, box.y0 - 0.3 * row, box.width + 0.04, box.height + 0.45 * row))

    def _timeline(self, axes: Axes, panel: Panel) -> None:
        states = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
        found = self._ask(panel["targets"][0])
        for row, series in enumerate(found):
            values = self._values(series)
            known = ~np.isnan(values)
            colors = [_NAMED[states[f"{value:g}"]["color"]] for value in values[known]]
            axes.bar(self._hours()[known], 0.8, HOURS / _POINTS, row - 0.4, color=colors)
        _finish(axes, "none", grid=False)
        axes.set_yticks(range(len(found)), [series["metric"]["instance"] for series in found])
        for state in states.values():
            axes.plot([], color=_NAMED[state["color"]], linewidth=5, label=state["text"])
        _place_legend(axes, [state["text"] for state in states.values()])

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
        return self._prometheus.query_range(expr, self._times[0], self._times[-1], self._step_seconds)

    def _values(self, series: Series) -> np.ndarray:
        values = np.full(len(self._times), math.nan)
        for moment, value in series["values"]:
            values[round((moment - self._times[0]) / self._step_seconds)] = float(value)
        return values

    def _hours(self) -> np.ndarray:
        return HOURS * (self._times - self._times[0]) / self._day_seconds

    def _hour(self, moment: float) -> float:
        return HOURS * (moment - float(self._times[0])) / self._day_seconds


def draw(minutes: float, folder: Path) -> None:
    """Runs servers through a day and saves a picture of each dashboard."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        if (found := programs(place)) is None:
            raise SystemExit("prometheus is not installed, and Debian's package cannot be fetched")
        with running_day(found, place, 60 * minutes) as prometheus:
            start = time.time()
            time.sleep(60 * minutes)
            for board in DASHBOARDS:
                Sheet(board, prometheus, start, start + 60 * minutes).save(folder / f"{board}.png")


def _frame(left: float, bottom: float, width: float, height: float, rows: float) -> Rectangle:
    gap, low = 0.003, 0.1 / rows
    return Rectangle(
        (left + gap, bottom + low),
        width - 2 * gap,
        height - 2 * low,
        fill=False,
        edgecolor=_FRAME,
        linewidth=0.8,
    )


def _place_legend(axes: Axes, names: Sequence[str]) -> None:
    """Puts the legend between the axes and the panel's lower edge, in as many columns as fit."""
    if not names:
        return
    figure, box = axes.get_figure(), axes.get_position()
    assert isinstance(figure, Figure)
    width, height = figure.get_size_inches() * _DPI
    entry = _CHARACTER_PIXELS * max(map(len, names)) + 24
    columns = max(1, min(len(names), int((box.width + 0.03) * width / entry)))
    lines = math.ceil(len(names) / columns)
    room = (lines * _LEGEND_PIXELS + 16) / height  # includes the tick labels
    ground = box.y0 - _UNIT_INCHES[1] * _DPI / height + 0.3 * _UNIT_INCHES[1] * _DPI / height
    axes.set_position((box.x0, ground + room, box.width, box.y1 - ground - room))
    axes.legend(loc="lower left", bbox_to_anchor=(box.x0 - 0.035, ground), bbox_transform=figure.transFigure,
                fontsize=_LEGEND_POINTS, frameon=False, ncols=columns, columnspacing=0.8, handlelength=1,
                borderaxespad=0, borderpad=0, labelspacing=0.25)  # fmt: skip


def _colors(panel: Panel, names: Sequence[str]) -> list[str]:
    fixed = {
        override["matcher"]["options"]: override["properties"][0]["value"]["fixedColor"]
        for override in panel["fieldConfig"]["overrides"]
    }
    return [
        _NAMED.get(fixed[name], fixed[name]) if name in fixed else _COLORS[number % len(_COLORS)]
        for number, name in enumerate(names)
    ]


def _written(value: float, unit: str) -> str:
    """Returns a number as a panel shows it."""
    if unit == "percentunit":
        return f"{100 * value:.2f} %"
    if unit == "s":
        return f"{value / 86400:.0f} days" if value > 86400 else f"{1000 * value:.0f} ms"
    return f"{value:.3g} /s" if unit in ("reqps", "ops") else f"{value:g}"


def _named(legend: str, series: Series) -> str:
    for label, value in series["metric"].items():
        legend = legend.replace(f"{{{{{label}}}}}", value)
    return re.sub(r"{{\w+}} ?", "", legend)  # removes labels that the series lacks


def _finish(axes: Axes, unit: str, *, grid: bool = True) -> None:
    axes.yaxis.set_major_formatter(_formatter(unit))
    axes.set_xticks(range(0, HOURS + 1, 6), [f"{hour}:00" for hour in range(0, HOURS + 1, 6)])
    axes.tick_params(labelsize=7.5, length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlim(0, HOURS)
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
    parser.add_argument("--minutes", type=float, default=12.0, help="duration of the day (default: 12)")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help=f"output folder (default: {_FOLDER})")
    arguments = parser.parse_args()
    draw(arguments.minutes, arguments.folder)
