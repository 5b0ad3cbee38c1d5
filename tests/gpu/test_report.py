"""The plan, tables and summary of a check, and the packages for a bare machine."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.gpu import prepare
from tests.gpu.machine import ROOT
from tests.gpu.plan import STEPS, module_of, selected
from tests.gpu.report import summary
from tests.gpu.results import Results, read_tables
from tests.gpu.runner import Outcome

HEADING = {"device, driver, memory": "NVIDIA H100, 580.1, 81559 MiB", "command": "python -m tests.gpu run"}


def _results(folder: Path, *, has_figures: bool = True, step: str = "model") -> Results:
    return Results(folder / "results.jsonl", step, has_figures)


def test_every_step_has_a_module() -> None:
    """The module is named after the first word of the step."""
    for step in STEPS:
        assert importlib.util.find_spec(f"tests.gpu.steps.{module_of(step.name)}"), step


def test_the_minimum_times_of_all_steps_fit_into_a_lease() -> None:
    """A lent machine runs one command for ten minutes; the default limit is 480 seconds."""
    assert sum(step.least_seconds for step in STEPS if not step.is_background) <= 480


def test_selected_steps_include_those_they_come_after() -> None:
    """The steps are in the plan's order."""
    assert [step.name for step in selected(["serve", "ceilings"])] == ["checkpoint", "ceilings", "serve"]
    assert selected([]) == list(STEPS)


def test_an_unknown_step_is_refused() -> None:
    """The error names it, and lists the steps."""
    with pytest.raises(ValueError, match="no step nothing; there are checkpoint, ceilings"):
        selected(["nothing"])


def test_tables_are_kept_line_by_line(tmp_path: Path) -> None:
    """Results from before a step died are read; a truncated line is not."""
    _results(tmp_path).measured("Images", {"batch": 1, "ms": 2.5}, {"batch": 2, "ms": None})
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"step": "model", "tit')

    (table,) = read_tables(tmp_path / "results.jsonl")

    assert (table.step, table.title) == ("model", "Images")
    assert table.rows == [{"batch": 1, "ms": 2.5}, {"batch": 2, "ms": None}]


def test_a_simulated_gpu_leaves_no_figures(tmp_path: Path) -> None:
    """Times and rates are omitted from file and summary; sizes and proofs stay."""
    results = _results(tmp_path, has_figures=False)
    results.measured("Images", {"batch": 8, "ms": 2.5})
    results.proved("Exactness", {"cosine": "0.999998"})

    tables = read_tables(tmp_path / "results.jsonl")
    text = summary(HEADING, [Outcome("model", "passed", 12.3)], tables, is_pretended=True)

    assert "2.5" not in (tmp_path / "results.jsonl").read_text()
    assert "**No GPU was used.**" in text
    assert "| 8 | - |" in text
    assert "| 0.999998 |" in text


def test_the_summary_has_the_machine_and_the_verdicts(tmp_path: Path) -> None:
    """Rows added one at a time form one table, and no cell can break it."""
    results = _results(tmp_path, step="variants")
    results.measured("Ways", {"dtype": "float16", "images/s": 1234.5})
    results.measured("Ways", {"dtype": "float32", "failed": "a | b\nc"})
    outcomes = [
        Outcome("variants", "timed out", 60.2, "after 60 s"),
        Outcome("compiled", "not run", None, "3 s left"),
    ]

    text = summary(HEADING, outcomes, read_tables(tmp_path / "results.jsonl"), is_pretended=False)

    assert "| **device, driver, memory** | NVIDIA H100, 580.1, 81559 MiB |" in text
    assert "| variants | timed out | 60 | after 60 s |" in text
    assert "| compiled | not run | - | 3 s left |" in text
    assert (
        "## Ways (variants)\n\n| dtype | images/s | failed |\n| --- | --- | --- |\n"
        "| float16 | 1234 | - |\n| float32 | - | a \\| b c |"
    ) in text
    assert "No GPU was used" not in text


def test_wheels_have_the_projects_versions() -> None:
    """A bare machine runs the same versions as the tests here."""
    assert [pin.split("==")[0].lower().replace("_", "-") for pin in prepare.pinned()] == [
        name.lower() for name in prepare.NAMES.read_text().split()
    ]


def test_a_repacked_wheel_has_the_same_files(tmp_path: Path) -> None:
    """Only their compression changes, and pip can install it."""
    wheel, site = tmp_path / "some-1.0-py3-none-any.whl", tmp_path / "site"
    tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("some.py", "VALUE = 1\n" * 1000)
        archive.writestr("some-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some\nVersion: 1.0\n")
        archive.writestr("some-1.0.dist-info/WHEEL", tags)
        archive.writestr("some-1.0.dist-info/RECORD", "")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]

    prepare.repack(wheel)

    subprocess.run([*install, "--target", str(site), str(wheel)], check=True)
    assert (site / "some.py").read_text() == "VALUE = 1\n" * 1000
    assert {member.compress_type for member in zipfile.ZipFile(wheel).infolist()} == {zipfile.ZIP_LZMA}


def test_what_may_be_deleted_exists() -> None:
    """A folder that was renamed would travel."""
    assert [name for name in prepare.UNNEEDED if not (ROOT / name).is_dir()] == []
