"""The tables on the pages agree with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from alignserve_server import errors
from alignserve_server.observability.events import EVENTS
from alignserve_server.rpc.status import to_grpc_status

from deploy.docs import tables
from deploy.docs.pages import pages
from deploy.docs.registered import levels, metrics
from tests.contract.documents import read, rows
from tests.processes import ROOT

ERROR_ROWS = rows(read("protos/README.md"), "code", "reason", "meaning", "details", "retry")


def test_error_table_lists_every_error() -> None:
    """protos/README.md has a row for each code and reason of errors.py, and no other."""
    documented = [(row["code"], row["reason"]) for row in ERROR_ROWS]

    assert sorted(documented) == sorted({(kind.code, kind.reason) for kind in _error_kinds()})


@pytest.mark.parametrize("row", ERROR_ROWS, ids=lambda row: row["reason"])
def test_error_table_says_what_can_be_retried(row: dict[str, str]) -> None:
    """A row promises RetryInfo and a retry after its delay if and only if the error is retryable."""
    is_retryable = any(kind.is_retryable for kind in _error_kinds() if kind.reason == row["reason"])

    assert row["retry"].startswith("after the delay" if is_retryable else "no")
    assert ("RetryInfo" in row["details"]) == is_retryable


@pytest.mark.parametrize("row", ERROR_ROWS, ids=lambda row: row["reason"])
def test_error_table_names_the_pushback(row: dict[str, str]) -> None:
    """A row names the pushback that ends its calls: the delay, -1, or none."""
    told = {_pushback(kind) for kind in _error_kinds() if kind.reason == row["reason"]}

    match = re.search(r"pushback( -1)?", row["details"])
    assert told == {None if match is None else match[0]}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_generated_tables_are_up_to_date(page: Path) -> None:
    """A page's tables between markers equal what `python -m deploy.docs.tables` writes."""
    assert page.read_text() == tables.written(page)


@pytest.mark.parametrize("name", tables.TABLES)
def test_each_table_is_complete_somewhere(name: str) -> None:
    """Each of them is on a page, with all its rows."""
    assert any(f"<!-- table: {name} -->" in page.read_text() for page in pages())


def test_a_row_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    """A setting that was renamed is not left out silently."""
    page = tmp_path / "page.md"
    page.write_text("<!-- table: settings listen no_such_setting -->\n<!-- end -->\n")

    with pytest.raises(KeyError, match="no_such_setting"):
        tables.written(page)


def test_metrics_of_the_supervisor_follow_those_of_the_server() -> None:
    """Each has its own labels, and metrics of both are listed once."""
    found = metrics()

    assert found["alignserve_state"].labels == ("state",)
    assert found["alignserve_worker_up"].labels == ("worker",)
    assert list(found)[-1].startswith("alignserve_worker_")


def test_every_event_is_described() -> None:
    """The registry of events has each that the server's code logs, and no other."""
    assert set(EVENTS) == set(levels())


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
