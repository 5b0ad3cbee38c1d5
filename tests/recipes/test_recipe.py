"""The recipe's stages as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.recipes.mini import __main__ as command
from server.recipes.mini.recipe import Options, Recipe
from server.recipes.mini.stages import Progress, Stage


@pytest.fixture
def stages(tmp_path: Path) -> list[Stage]:
    """All stages, with the default options."""
    return Recipe(Options(), tmp_path, tmp_path, Progress()).stages()


def test_every_stage_needs_only_earlier_ones(stages: list[Stage]) -> None:
    """So that one pass in order suffices."""
    for at, stage in enumerate(stages):
        assert set(stage.needs) <= {earlier.name for earlier in stages[:at]}


def test_every_stage_names_code_that_exists(stages: list[Stage]) -> None:
    """A misspelled module would never rerun its stage."""
    assert [path.name for stage in stages for path in stage.code if not path.exists()] == []


def test_the_command_explains_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--help` names the options and what they default to."""
    monkeypatch.setattr("sys.argv", ["mini", "--help"])

    with pytest.raises(SystemExit, match="0"):
        command.main()

    assert "--install" in capsys.readouterr().out
