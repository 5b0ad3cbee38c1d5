"""Finds the names in the server's code: its metrics, and the events that it logs."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import prometheus_client
from alignserve_server.observability.metrics import Metrics
from alignserve_server.workers.roster import Member, roster
from alignserve_server.workers.supervisor import Process, Supervisor
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from deploy.docs.pages import ROOT

# Helpers that log instead of a logger, with their log level.
_HELPERS = {"_render_own": "error", "announce": "info", "_announce": "info"}
_LEVELS = {"exception": "error", **_HELPERS}
_TO_THE_SUPERVISOR = {"beat", "state"}  # sent by workers, never logged


@dataclass(frozen=True)
class Metric:
    """One metric, as Prometheus sees it."""

    kind: str
    labels: tuple[str, ...]
    text: str


def metrics() -> dict[str, Metric]:
    """Returns the metrics of a server and then those of its supervisor, by name."""
    server, supervisor = CollectorRegistry(), CollectorRegistry()
    Metrics(server)
    Supervisor(roster(1, 0), _launch, supervisor, stop_timeout_seconds=0)  # launches nothing before it runs
    found = dict(_registered(server))
    found.update((name, metric) for name, metric in _registered(supervisor) if name not in found)
    return found


async def _launch(member: Member, is_first: bool) -> Process:
    raise NotImplementedError


def _registered(registry: CollectorRegistry) -> Iterator[tuple[str, Metric]]:
    for collector in list(registry._collector_to_names):
        for family in collector.collect():
            if not family.name.startswith(("process_", "python_")):
                name = f"{family.name}_total" if family.type == "counter" else family.name
                labels = _labels(collector) or _labels(family)
                yield name, Metric(family.type, labels, family.documentation)


def _labels(registered: Collector | prometheus_client.Metric) -> tuple[str, ...]:
    # prometheus_client has the labels nowhere else before a series exists.
    names: Iterable[str] = getattr(registered, "label_names", ()) or getattr(registered, "_labelnames", ())
    return tuple(names)


def levels() -> dict[str, str]:
    """Returns the level of each event that the server's code logs, by name.

    Raises:
        ValueError: The name of an event is not a literal, or it has several levels.
    """
    found: dict[str, str] = {}
    for call, name in _logging_calls():
        event = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
        level = _LEVELS.get(name, name)
        if not isinstance(event, str) or found.setdefault(event, level) != level:
            raise ValueError(f"line {call.lineno}: {ast.unparse(call)}: not a literal, or several levels")
    return {event: level for event, level in found.items() if event not in _TO_THE_SUPERVISOR}


def _logging_calls() -> Iterator[tuple[ast.Call, str]]:
    """Yields the calls of loggers and helpers, with the name of the called function."""
    for source in sorted((ROOT / "server" / "alignserve_server").rglob("*.py")):
        if "get_logger" not in (text := source.read_text()):
            continue  # it logs sentences, as libraries do
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _logs(node.func):
                yield node, node.func.attr


def _logs(function: ast.Attribute) -> bool:
    of = function.value
    is_of_logger = (isinstance(of, ast.Name) and of.id == "_log") or (
        isinstance(of, ast.Call) and isinstance(of.func, ast.Name) and of.func.id == "get_logger"
    )
    return is_of_logger or function.attr in _HELPERS
