"""The recipe's stages as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from server.recipes.mini import __main__ as command
from server.recipes.mini import photo_sets
from server.recipes.mini.captions import Photo
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


def test_the_temperature_is_of_the_rehearsal_and_the_weights_are_not(stages: list[Stage]) -> None:
    """The checkpoint has learned from all photographs; its temperature is right for unseen ones."""
    needs = {stage.name: stage.needs for stage in stages}

    assert {"rehearsal", "tuning"} & set(needs["calibration"]) == {"rehearsal"}
    assert {"rehearsal", "tuning"} & set(needs["checkpoint"]) == {"tuning"}


def test_a_rehearsal_leaves_out_what_is_withheld() -> None:
    """And only that; the checkpoint learns from all."""
    listed = [Photo(f"{name}/1.jpg", ("x",), collection=str(name)) for name in range(20)]

    rows = photo_sets.learned(listed, is_rehearsal=True)

    assert [listed[row].is_withheld for row in rows] == [False] * len(rows)
    assert len(rows) == sum(not photo.is_withheld for photo in listed) < 20
    assert photo_sets.learned(listed, is_rehearsal=False) == list(range(20))


def test_weights_are_averaged_by_name() -> None:
    """Of models of the same shape."""
    found = photo_sets.mean_of_weights([{"a": torch.tensor([1.0, 3.0])}, {"a": torch.tensor([3.0, 5.0])}])

    assert found["a"].tolist() == [2.0, 4.0]


def test_the_command_explains_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--help` names the options and what they default to."""
    monkeypatch.setattr("sys.argv", ["mini", "--help"])

    with pytest.raises(SystemExit, match="0"):
        command.main()

    assert "--install" in capsys.readouterr().out
