"""Plug-in scorers: how they are named, and what their errors do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from alignserve.curate.scorers import Scorer
from alignserve.datasets.row import RowFailure


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with scorers."""
    (tmp_path / "my_scorers.py").write_text(
        "import math\n"
        "calls = []\n"
        "class Model:\n"
        "    def score(self, images, texts):\n"
        "        calls.append(len(images))\n"
        "        if b'bad' in images: raise RuntimeError('cannot decode')\n"
        "        return [len(image) / 10 if text else math.nan for image, text in zip(images, texts)]\n"
        "model = Model()\n"
        "def short(images, texts): return []\n"
        "def nested(images, texts): return [[0.5] for _ in images]\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_scorers", raising=False)
    return "my_scorers"


def test_a_scorer_gets_images_and_texts(module: str) -> None:
    """NaN means that there is no score."""
    scorer = Scorer.load("nsfw_score_opennsfw2", f"{module}:model.score")

    assert scorer.scores([b"12345", b"1"], ["text", None]) == [0.5, None]


def test_a_pair_that_a_scorer_fails_on_fails_by_itself(module: str) -> None:
    """The others of its batch are scored."""
    scorer = Scorer.load("score", f"{module}:model.score")

    first, second, third = scorer.scores([b"1", b"bad", b"123"], ["a", "b", "c"])

    assert (first, third) == (0.1, 0.3)
    assert isinstance(second, RowFailure)
    assert second.reason == "SCORER_FAILED"
    assert "cannot decode" in second.message


def test_a_wrong_number_of_scores_ends_the_run(module: str) -> None:
    """They could belong to any pair."""
    with pytest.raises(ValueError, match="returned 0 scores for 1 pairs"):
        Scorer.load("score", f"{module}:short").scores([b"1"], ["a"])


def test_a_score_that_is_no_number_ends_the_run(module: str) -> None:
    """Such as an array of one column: taken for missing, it would drop every row."""
    with pytest.raises(ValueError, match=r"returned \[0\.5\], which is not a number"):
        Scorer.load("score", f"{module}:nested").scores([b"1"], ["a"])


def test_a_scorer_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by an installed command, which Python does not give the current folder."""
    (tmp_path / "here_scorers.py").write_text("def score(images, texts): return [1.0]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])

    assert Scorer.load("score", "here_scorers:score").scores([b"1"], ["a"]) == [1.0]


@pytest.mark.parametrize(
    "target", ["my_scorers", ":f", "my_scorers:", "my_scorers:absent", "absent_module:f"]
)
def test_a_scorer_that_cannot_be_loaded_is_named(module: str, target: str) -> None:
    """Before anything is measured."""
    with pytest.raises(ValueError, match=target):
        Scorer.load("score", target)


def test_a_scorer_must_be_callable(module: str) -> None:
    """A number is not."""
    with pytest.raises(ValueError, match="not callable"):
        Scorer.load("score", f"{module}:number")
