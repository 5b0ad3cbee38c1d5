"""Stages run once, and again when something that they depend on changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from server.recipes.mini.stages import Progress, Stage, run_all


class _Runs:
    """Two stages that write text, and count their runs."""

    def __init__(self, folder: Path) -> None:
        self.code = folder / "code.py"
        self.code.write_text("one = 1\n", "utf-8")
        self.work = folder / "work"
        self.names: list[str] = []
        self.text = "a"

    def run(self, seed: int = 0) -> dict[str, Path]:
        """Runs both."""
        stages = [
            Stage("first", self._first, code=(self.code,)),
            Stage("second", self._second, needs=("first",), parameters={"seed": seed}),
        ]
        return run_all(stages, self.work, Progress(out=lambda line: None))

    def _first(self, _: Mapping[str, Path], out: Path) -> None:
        self.names.append("first")
        (out / "text").write_text(self.text, "utf-8")

    def _second(self, folders: Mapping[str, Path], out: Path) -> None:
        self.names.append("second")
        (out / "text").write_text((folders["first"] / "text").read_text("utf-8") * 2, "utf-8")


@pytest.fixture
def runs(tmp_path: Path) -> _Runs:
    """Nothing has run yet."""
    return _Runs(tmp_path)


def test_a_result_is_kept_while_its_inputs_stay(runs: _Runs) -> None:
    """The second run does nothing."""
    runs.run()
    folders = runs.run()

    assert runs.names == ["first", "second"]
    assert (folders["second"] / "text").read_text("utf-8") == "aa"


def test_a_parameter_reruns_its_stage_alone(runs: _Runs) -> None:
    """The first stage does not have it."""
    runs.run()
    runs.run(seed=1)

    assert runs.names == ["first", "second", "second"]


def test_changed_code_reruns_its_stage_and_those_after_it_only_if_the_result_differs(runs: _Runs) -> None:
    """Later stages depend on the result, not on how it came about."""
    runs.run()
    runs.code.write_text("two = 2\n", "utf-8")
    runs.run()
    assert runs.names == ["first", "second", "first"]

    runs.code.write_text("three = 3\n", "utf-8")
    runs.text = "b"
    folders = runs.run()
    assert runs.names[3:] == ["first", "second"]
    assert (folders["second"] / "text").read_text("utf-8") == "bb"


def test_a_comment_reruns_nothing(runs: _Runs) -> None:
    """Nor does a docstring."""
    runs.run()
    runs.code.write_text('"""Says one."""\n\none = 1  # not two\n', "utf-8")
    runs.run()

    assert runs.names == ["first", "second"]


def test_a_stage_that_failed_leaves_no_result(runs: _Runs) -> None:
    """What it wrote stays in a draft, which the next run replaces."""

    def fails(_: Mapping[str, Path], out: Path) -> None:
        (out / "text").write_text("half", "utf-8")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        run_all([Stage("first", fails, code=(runs.code,))], runs.work, Progress(out=lambda line: None))
    folders = runs.run()

    assert (folders["first"] / "text").read_text("utf-8") == "a"
