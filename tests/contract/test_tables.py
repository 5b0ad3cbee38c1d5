"""The tables of the READMEs say what the code does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest
from alignserve_server import errors
from alignserve_server.observability.metrics import Metrics
from alignserve_server.rpc.status import to_grpc_status
from alignserve_server.settings import Settings
from alignserve_server.settings.renamed import REMOVED, RENAMED
from alignserve_server.workers.supervisor import Supervisor
from prometheus_client import CollectorRegistry

from tests.contract.documents import read, rows
from tests.processes import ROOT

ERROR_ROWS = rows(read("protos/README.md"), "code", "reason", "meaning", "details", "retry")
RENAMING_COLUMNS = ("", "until now", "now")
SETTING_COLUMNS = ("setting", "default", "meaning")
_IN_PLACE_OF_LOGGERS = {"_render_own": "error", "announce": "info", "_announce": "info"}
_LEVELS = {"exception": "error", **_IN_PLACE_OF_LOGGERS}
METRIC_COLUMNS = ("metric", "type", "labels", "meaning")


def test_error_table_lists_every_error() -> None:
    """protos/README.md has a row for each code and reason of errors.py, and no other."""
    documented = [(row["code"], row["reason"]) for row in ERROR_ROWS]

    assert sorted(documented) == sorted({(kind.code, kind.reason) for kind in _error_kinds()})


@pytest.mark.parametrize("row", ERROR_ROWS, ids=lambda row: row["reason"])
def test_error_table_says_what_can_be_retried(row: dict[str, str]) -> None:
    """A row promises RetryInfo, and a retry after its delay, exactly if the error is retryable."""
    is_retryable = any(kind.is_retryable for kind in _error_kinds() if kind.reason == row["reason"])

    assert row["retry"].startswith("after the delay" if is_retryable else "no")
    assert ("RetryInfo" in row["details"]) == is_retryable


@pytest.mark.parametrize("row", ERROR_ROWS, ids=lambda row: row["reason"])
def test_error_table_says_what_grpcs_own_retries_are_told(row: dict[str, str]) -> None:
    """A row names the pushback that ends its calls: the delay, -1, or none."""
    told = {_pushback(kind) for kind in _error_kinds() if kind.reason == row["reason"]}

    match = re.search(r"pushback( -1)?", row["details"])
    assert told == {None if match is None else match[0]}


def test_short_error_table_is_a_part_of_the_full_one() -> None:
    """README.md names only codes and reasons that protos/README.md explains."""
    full = {(row["code"], row["reason"]) for row in ERROR_ROWS}

    short = {
        (row["code"], reason)
        for row in rows(read("README.md"), "code", "reasons", "what to do")
        for reason in re.findall(r"[A-Z_]{4,}", row["reasons"])
    }

    assert short
    assert short <= full


def test_settings_table_equals_the_settings() -> None:
    """server/README.md lists every setting once, in order, with its default and its help text."""
    documented = [
        (row["setting"], _without_unit(row["default"]), row["meaning"])
        for row in rows(read("server/README.md"), *SETTING_COLUMNS)
    ]

    assert documented == _settings()


def test_short_settings_table_says_the_same() -> None:
    """README.md names only settings that exist, with their defaults and their help texts."""
    short = {
        (row["setting"], _without_unit(row["default"]), row["meaning"])
        for row in rows(read("README.md"), *SETTING_COLUMNS)
    }

    assert short
    assert short <= set(_settings())


def test_changelog_names_every_setting_that_was_renamed_or_removed() -> None:
    """CHANGELOG.md has a row for each, with the new name."""
    table = rows(read("CHANGELOG.md"), *RENAMING_COLUMNS)
    documented = {row["until now"]: row["now"] for row in table if row[""] == "setting"}

    assert documented.keys() == RENAMED.keys() | REMOVED.keys()
    for old, new in RENAMED.items():
        assert documented[old].startswith(new)
    for old in REMOVED:
        assert documented[old].startswith("removed; ")


def test_metrics_table_equals_the_registry() -> None:
    """server/README.md lists every metric of the server, in order, with type, labels and help text."""
    documented = [
        (row["metric"], row["type"], row["labels"].replace("`", "").split(), row["meaning"])
        for row in rows(read("server/README.md"), *METRIC_COLUMNS)
    ]

    assert documented == _metrics()


def test_short_metrics_table_names_metrics_that_exist() -> None:
    """README.md names only metrics of the registry."""
    names = {name for name, *_ in _metrics()}

    short = {row["metric"] for row in rows(read("README.md"), "metric", "what it tells")}

    assert short
    assert short <= names


def test_log_table_equals_the_events() -> None:
    """server/README.md lists every event that the server's code logs, once, at its level, and no other."""
    documented = [
        (event, level)
        for row in rows(read("server/README.md"), "event", "level", "when")
        for event, level in _leveled(re.findall(r"\w+", row["event"]), re.findall(r"\w+", row["level"]))
    ]

    assert sorted(documented) == sorted(_events())


def test_every_event_has_its_name_in_the_code() -> None:
    """An event whose name is put together as it is logged could be in no table."""
    assert [call.lineno for call, _ in _logging_calls() if not isinstance(_event_of(call), str)] == []


def _leveled(events: list[str], levels: list[str]) -> list[tuple[str, str]]:
    """Pairs the events of a row with their levels, of which there is one for all or one for each."""
    return list(zip(events, levels * len(events) if len(levels) == 1 else levels, strict=True))


def _events() -> set[tuple[str, str]]:
    """Returns the events that the code logs, with their levels."""
    told = {("beat", "info"), ("state", "info")}  # by a worker to its supervisor, and never logged
    return {(str(_event_of(call)), _LEVELS.get(name, name)) for call, name in _logging_calls()} - told


def _event_of(call: ast.Call) -> object:
    return call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None


def _logging_calls() -> Iterator[tuple[ast.Call, str]]:
    """Yields the calls of loggers, and of what takes a log's place, with the name of what is called."""
    for source in sorted((ROOT / "server" / "alignserve_server").rglob("*.py")):
        if "get_logger" not in (text := source.read_text()):
            continue  # it logs as libraries do, in sentences
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _logs(node.func):
                yield node, node.func.attr


def _logs(function: ast.Attribute) -> bool:
    of = function.value
    is_of_logger = (isinstance(of, ast.Name) and of.id == "_log") or (
        isinstance(of, ast.Call) and isinstance(of.func, ast.Name) and of.func.id == "get_logger"
    )
    return is_of_logger or function.attr in _IN_PLACE_OF_LOGGERS


def _error_kinds() -> list[type[errors.ServingError]]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [
        kind for kind in kinds if issubclass(kind, errors.ServingError) and kind is not errors.ServingError
    ]


def _pushback(kind: type[errors.ServingError]) -> str | None:
    error = kind.__new__(kind)
    errors.ServingError.__init__(error, "", retry_delay_seconds=7.0)
    value = dict(to_grpc_status(error).trailing_metadata).get("grpc-retry-pushback-ms")
    if value is None or value == "-1":
        return value and "pushback -1"
    assert 7000 <= int(value) <= 8750
    return "pushback"


def _settings() -> list[tuple[str, str, str]]:
    return [
        (name, _literal(field.default), field.description or "")
        for name, field in Settings.model_fields.items()
    ]


def _literal(value: Any) -> str:
    if value is None:
        return "unset"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _without_unit(default: str) -> str:
    return default.split("` (")[0]  # `10485760` (10 MiB)


def _metrics() -> list[tuple[str, str, list[str], str]]:
    metrics = Metrics(CollectorRegistry())
    workers = CollectorRegistry()
    Supervisor(1, None, workers, stop_timeout_seconds=0)  # which would launch nothing before it runs
    labels = {
        getattr(collector, "name", None) or collector._name: list(
            collector.label_names if hasattr(collector, "label_names") else collector._labelnames
        )  # prometheus_client tells them nowhere else before a series exists
        for collector in vars(metrics).values()
        if hasattr(collector, "collect") and collector is not metrics.registry
    }
    own = [family for family in workers.collect() if family.name not in labels]  # not what workers have too
    labels.update((family.name, ["worker"]) for family in own)
    return [
        (
            f"{family.name}_total" if family.type == "counter" else family.name,
            family.type,
            labels[family.name],
            family.documentation,
        )
        for family in (*metrics.registry.collect(), *own)
        if not family.name.startswith(("process_", "python_"))
    ]
