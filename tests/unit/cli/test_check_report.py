"""What `alignserve-server check` prints, and what it takes from the log."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
from alignserve_server.cli.check.model import collected_warnings
from alignserve_server.cli.check.report import CheckFailed, CheckWarning, Report
from alignserve_server.cli.main import run
from alignserve_server.model.checkpoint import resolve_checkpoint
from alignserve_server.observability.logs import configure_logs, get_logger

PAGE = Path(__file__).parents[3] / "server" / "docs" / "check.md"


def _raising(error: Exception) -> str:
    raise error


def test_each_finding_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """With verdict and subject in columns; the last line counts them, and the exit code is 1 for a FAIL."""
    clock = iter([0.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0, 3.26])
    report = Report(is_json=False, clock=lambda: next(clock))

    report.run("memory", lambda: "enough\nof it")
    report.run("tokenizer", lambda: _raising(CheckWarning("short texts")))
    report.run("checkpoint", lambda: _raising(CheckFailed("config.json is empty", "no weights")))
    report.run("model", lambda: _raising(KeyError()))
    code = report.end()

    assert code == 1
    assert capsys.readouterr().out.splitlines() == [
        "ok    memory              enough of it",
        "warn  tokenizer           short texts",
        "FAIL  checkpoint          config.json is empty",
        "FAIL  checkpoint          no weights",
        "FAIL  model               KeyError",
        "1 ok, 1 warn, 3 FAIL; 3.3 s",
    ]


def test_a_warning_does_not_prevent_a_start(capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 0. As JSON, nothing is printed before the end."""
    clock = iter([0.0, 1.0, 1.5, 2.0])
    report = Report(is_json=True, clock=lambda: next(clock))

    report.run("clock", lambda: _raising(CheckWarning("it moved")))
    code = report.end()

    assert code == 0
    assert json.loads(capsys.readouterr().out) == {
        "starts": True,
        "seconds": 2.0,
        "findings": [{"verdict": "warn", "subject": "clock", "text": "it moved", "seconds": 0.5}],
    }


def test_what_the_loader_logs_as_a_warning_is_collected() -> None:
    """Except for lines of libraries, and events that other checks report."""
    configure_logs("warning", "json")

    with collected_warnings() as warnings:
        get_logger("model").warning("runtime_unavailable", runtime="openvino", reason="no CPU plugin")
        get_logger("model").warning("gpu_unused", reason="torch is not installed")
        get_logger("model").info("converting")
        logging.getLogger("some.library").warning("deprecated")

    assert warnings == ["runtime_unavailable: runtime openvino, reason no CPU plugin"]


def test_every_subject_is_documented(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The page lists what each check finds, including those that only some settings call for."""
    (tmp_path / "keys.json").write_text("{}")
    settings = [
        *("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"),
        *("--tls-certificate", "none.pem", "--tls-key", "none.pem", "--tracing", "--front-processes", "1"),
        *("--api-keys-file", str(tmp_path / "keys.json"), "--calibration-dir", str(tmp_path)),
    ]
    prepared = resolve_checkpoint().folder / "prepared"
    seen = {"model", "picture"}  # which need a load

    for checkpoint in ("mini", str(prepared)):
        run(["check", "--quick", "--json", "--checkpoint", checkpoint, *settings])
        seen |= {finding["subject"] for finding in json.loads(capsys.readouterr().out)["findings"]}

    table = PAGE.read_text().partition("## What it examines")[2].partition("\n## ")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(first_cells))) == seen
