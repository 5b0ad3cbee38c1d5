"""The script of an unmodified client passes only by what it prints and how it ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.conformance.clients import Client, fill_client, read_client
from tests.conformance.deadline import Deadline
from tests.conformance.matrix import Column

_HEAD = 'import json; print(json.dumps({"client": "A client", "versions": {"it": "1.0"}}), flush=True)\n'
_PASS = 'print(json.dumps({"check": "embeds", "ok": True, "detail": "512 numbers"}), flush=True)\n'
_FAIL = 'print(json.dumps({"check": "refuses", "ok": False, "detail": "500"}), flush=True)\n'


def _filled(folder: Path, script: str, seconds: float = 60.0) -> Column:
    (folder / "check.py").write_text(script)
    client = Client(
        key="it",
        name="it",
        folder=folder,
        environment=folder / "environment",
        run=[sys.executable, "check.py"],
        tools=[],
        apt=[],
        seconds=seconds,
    )
    client.environment.mkdir()
    return fill_client(client, dict(os.environ), lambda _: None, Deadline(120.0))


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installing needs the network, and is not tested here."""
    monkeypatch.setattr("tests.conformance.clients._install", lambda *_: None)


def test_checks_are_taken_as_printed(tmp_path: Path) -> None:
    """Name and versions are the script's."""
    column = _filled(tmp_path, _HEAD + _PASS + _FAIL)

    assert (column.name, column.versions) == ("A client", {"it": "1.0"})
    assert [(each.name, each.verdict) for each in column.outcomes] == [
        ("embeds", "passed"),
        ("refuses", "failed"),
    ]


@pytest.mark.parametrize(
    ("script", "detail"),
    [
        (_HEAD, "printed no check"),
        (_HEAD + _PASS + "raise SystemExit(3)", "ended with 3"),
        (_HEAD + _PASS + "raise RuntimeError('no server')", "no server"),
        (_HEAD + _PASS + "print('{Hello, world')", "printed something else than its checks: {Hello, world"),
        (_HEAD + 'print(json.dumps({"check": "embeds"}))', "printed something else"),
        (_HEAD + _PASS + "import time; time.sleep(600)", "took more than"),
    ],
)
def test_a_script_that_does_not_end_well_fails(tmp_path: Path, script: str, detail: str) -> None:
    """What it had printed before is kept."""
    column = _filled(tmp_path, script, seconds=3.0)

    assert column.outcomes[-1].verdict == "failed"
    assert detail in column.outcomes[-1].detail
    assert [each.verdict for each in column.outcomes[:-1]] == ["passed"] * (len(column.outcomes) - 1)


def test_what_a_client_prints_by_itself_is_ignored(tmp_path: Path) -> None:
    """Some print advice to standard output."""
    column = _filled(tmp_path, _HEAD + "print(); print('Get help at …')\n" + _PASS)

    assert [each.verdict for each in column.outcomes] == ["passed"]


def test_ok_must_be_true_itself(tmp_path: Path) -> None:
    """A text is not a verdict."""
    column = _filled(tmp_path, _HEAD + 'print(json.dumps({"check": "embeds", "ok": "no"}))')

    assert [each.verdict for each in column.outcomes] == ["failed"]


def test_a_missing_tool_skips_the_client(tmp_path: Path) -> None:
    """A skipped client is never passed."""
    (tmp_path / "check.py").write_text(_HEAD + _PASS)
    (tmp_path / "client.toml").write_text('tools = ["no-such-browser"]\n')

    client = read_client(tmp_path, tmp_path / "environment")
    column = fill_client(client, {}, lambda _: None, Deadline(60.0))

    assert "no-such-browser" in column.skipped
    assert [each.verdict for each in column.outcomes] == ["skipped"]
