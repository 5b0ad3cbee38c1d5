"""Builds panels and dashboards in Grafana's JSON, so that the other modules define only their contents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeAlias

from deploy.grafana.generator import promql

Json: TypeAlias = dict[str, object]

TAG = "alignserve"
RUNBOOKS = "https://github.com/alignserve/alignserve/blob/main/deploy/prometheus/README.md"

_SCHEMA_VERSION = 41  # of Grafana 11.6; later versions migrate it on load
_SOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24


@dataclass(frozen=True)
class About:
    """The common part of all panels: title, meaning of bad values, unit, and the alerts that watch it."""

    title: str
    description: str
    unit: str
    alerts: Sequence[str] = ()
    width: int = 8  # columns


@dataclass(frozen=True)
class Query:
    """PromQL, and the names of its series."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A panel without its position."""

    width: int
    json: Json


@dataclass(frozen=True)
class Row:
    """A group of related panels."""

    title: str
    panels: Sequence[Panel]
    height: int = 8  # rows of Grafana's grid


def graph(
    about: About,
    *queries: Query,
    limit: float | None = None,
    is_stacked: bool = False,
    colors: Mapping[str, str] | None = None,
) -> Panel:
    """Draws lines, optionally stacked, and a dashed one at `limit`; `colors` fixes the colors of series."""
    custom: Json = {"fillOpacity": 60 if is_stacked else 8, "showPoints": "never"}
    field: Json = {"min": 0, "custom": custom}
    if is_stacked:
        custom["stacking"] = {"mode": "normal"}
    if limit is not None:
        custom["thresholdsStyle"] = {"mode": "dashed"}
        field["thresholds"] = _thresholds((None, "green"), (limit, "red"))
    options: Json = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    panel = _panel("timeseries", about, map(_range, queries), field, options)
    _fix_colors(panel, colors or {})
    return panel


def heat(about: About, expr: str) -> Panel:
    """Draws the counts in each bucket of a histogram over time."""
    query = {**_range(Query(expr, "{{le}}")), "format": "heatmap"}
    options: Json = {
        "calculate": False,
        "color": {"mode": "scheme", "scheme": "Oranges", "exponent": 0.5, "fill": "dark-orange", "steps": 64},
        "yAxis": {"unit": about.unit, "axisPlacement": "left"},
        "cellGap": 1,
        "legend": {"show": True},
        "tooltip": {"mode": "single"},
    }
    return _panel("heatmap", about, [query], {}, options)


def number(about: About, query: Query, *steps: tuple[float | None, str], nothing: str = "0") -> Panel:
    """Shows the last value in the color of the highest step reached, or `nothing` in gray."""
    none: Json = {"match": "null+nan", "result": {"text": nothing, "color": "#8e8e8e"}}
    field: Json = {
        "thresholds": _thresholds(*steps),
        "noValue": nothing,
        "mappings": [{"type": "special", "options": none}],
    }
    options: Json = {
        "graphMode": "none",
        "colorMode": "background",
        "reduceOptions": {"calcs": ["lastNotNull"]},
    }
    return _panel("stat", about, [_range(query)], field, options)


def timeline(about: About, query: Query, states: Sequence[tuple[str, str]]) -> Panel:
    """Shows states over time; the values 0, 1, … index (name, color)."""
    names = {str(value): {"text": name, "color": color} for value, (name, color) in enumerate(states)}
    field: Json = {"mappings": [{"type": "value", "options": names}], "custom": {"fillOpacity": 70}}
    options: Json = {"showValue": "never", "rowHeight": 0.8, "mergeValues": True}
    return _panel("state-timeline", about, [_range(query)], field, options)


def listing(about: About, expr: str, value: str, labels: Sequence[str]) -> Panel:
    """Lists label sets, one per line, with their value under the name `value`."""
    query: Json = {"expr": expr, "instant": True, "range": False, "format": "table"}
    order: Json = {
        "excludeByName": {"Time": True},
        "indexByName": {name: place for place, name in enumerate((*labels, "Value"))},
        "renameByName": {"Value": value},
    }
    panel = _panel("table", about, [query], {}, {"showHeader": True})
    panel.json["transformations"] = [{"id": "organize", "options": order}]
    return panel


def board(name: str, title: str, description: str, rows: Sequence[Row]) -> Json:
    """Arranges panels in rows, below the menus for servers and the links to the other dashboards."""
    return {
        "uid": f"{TAG}-{name}",
        "title": f"{TAG}: {title}",
        "description": description,
        "tags": [TAG],
        "schemaVersion": _SCHEMA_VERSION,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "graphTooltip": 1,
        "templating": {"list": [_source(), *_choices()]},
        "annotations": {"list": [_starts(), _alerts()]},
        "links": [_to_dashboards(), _link("Runbooks", f"{RUNBOOKS}#what-to-do")],
        "panels": list(_placed(rows)),
    }


def _panel(
    kind: str, about: About, queries: Iterator[Json] | list[Json], field: Json, options: Json
) -> Panel:
    panel: Json = {
        "type": kind,
        "title": about.title,
        "description": about.description,
        "datasource": _SOURCE,
        "links": [_link(alert, f"{RUNBOOKS}#{alert.lower()}") for alert in about.alerts],
        "targets": [{"refId": name, **query} for name, query in zip("ABCDEF", queries, strict=False)],
        "fieldConfig": {"defaults": {"unit": about.unit, **field}, "overrides": []},
        "options": options,
    }
    return Panel(about.width, panel)


def _placed(rows: Sequence[Row]) -> Iterator[Json]:
    identities, y = count(1), 0
    for row in rows:
        place = {"x": 0, "y": y, "w": _COLUMNS, "h": 1}
        yield {"id": next(identities), "type": "row", "title": row.title, "gridPos": place, "panels": []}
        x, y = 0, y + 1
        for panel in row.panels:
            if x + panel.width > _COLUMNS:
                x, y = 0, y + row.height
            place = {"x": x, "y": y, "w": panel.width, "h": row.height}
            yield {"id": next(identities), **panel.json, "gridPos": place}
            x += panel.width
        y += row.height


def _fix_colors(panel: Panel, colors: Mapping[str, str]) -> None:
    defaults = panel.json["fieldConfig"]
    panel.json["fieldConfig"] = {
        **(defaults if isinstance(defaults, dict) else {}),
        "overrides": [
            {
                "matcher": {"id": "byName", "options": name},
                "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": color}}],
            }
            for name, color in colors.items()
        ],
    }


def _range(query: Query) -> Json:
    return {"expr": query.expr, "legendFormat": query.legend, "instant": False, "range": True}


def _thresholds(*steps: tuple[float | None, str]) -> Json:
    return {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in steps]}


def _source() -> Json:
    return {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus"}


def _choices() -> list[Json]:
    # All scraped targets, whether they answer or not; clusters and namespaces if series have such a label.
    found = {
        "cluster": "label_values(alignserve_state, cluster)",
        "namespace": 'label_values(alignserve_state{cluster=~"$cluster"}, namespace)',
        "job": 'label_values(alignserve_state{cluster=~"$cluster", namespace=~"$namespace"}, job)',
        "instance": f"label_values(up{{{promql.PLACES}}}, instance)",
    }
    return [
        {
            "type": "query",
            "name": name,
            "label": name.capitalize(),
            "datasource": _SOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,  # whenever the time range changes
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",  # includes series without the label
            "current": {"text": ["All"], "value": ["$__all"]},
        }
        for name, query in found.items()
    ]


def _starts() -> Json:
    expr = f"{promql.series('process_start_time_seconds')} * 1000"
    return {**_annotation("Starts", "blue", expr, "{{instance}} started"), "useValueForTime": True}


def _alerts() -> Json:
    return _annotation("Alerts", "red", promql.FIRING, "{{alertname}} {{instance}}")


def _annotation(name: str, color: str, expr: str, title: str) -> Json:
    return {
        "name": name,
        "datasource": _SOURCE,
        "enable": True,
        "iconColor": color,
        "target": {"expr": expr, "refId": name},
        "titleFormat": title,
    }


def _to_dashboards() -> Json:
    return {"title": TAG, "type": "dashboards", "tags": [TAG], "includeVars": True, "keepTime": True}


def _link(title: str, url: str) -> Json:
    return {"title": title, "type": "link", "url": url, "targetBlank": True}
