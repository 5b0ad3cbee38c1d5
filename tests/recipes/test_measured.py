"""The card of the embedded checkpoint has the figures that were measured, and they are of this checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.docs.pages import ROOT
from deploy.docs.tables import written
from server.recipes.mini import card, install, measure
from server.recipes.mini.digests import file_digest

_AGAIN = "run `python -m server.recipes.mini.measure`"
_FOLDERS = (install.CHECKPOINT, install.CHECKPOINT / "prepared")
_FIGURES: dict[str, Any] = {
    "weight_bytes": 25_036_052,
    "parameters": 12_500_000,
    "temperature": 0.035,
    "questions": {"colours": {"count": 20, "right": 9}, "rooms": {"count": 20, "right": 17}},
    "calibration": {
        "error": 0.1234,
        "if_calibrated": 0.05,
        "mean_score": 0.7,
        "sure": 30,
        "sure_and_wrong": 2,
    },
    "imagenet": {"top_1": 0.5, "top_5": 0.75},
    "milliseconds": {"image": 12.34, "text": 2.0},
}
_FIGURES["sources"] = {
    "seen": {"questions": {"rooms": {"count": 20, "right": 17}}, "calibration": _FIGURES["calibration"]},
    "unseen": {"questions": {"colours": {"count": 20, "right": 9}}, "calibration": _FIGURES["calibration"]},
}
_MEASURED = {"machine": "2 cores", "load": 1.25, "date": "2026-11-29", "figures": _FIGURES}


def test_figures_are_of_the_embedded_checkpoint() -> None:
    """They name its digest, and that of the questions."""
    measured = card.read()

    assert measured["checkpoint"] == install.checkpoint_digest(), _AGAIN
    assert measured["questions"] == file_digest(measure.QUESTIONS), _AGAIN


def test_the_card_has_these_figures() -> None:
    """Its tables are those of the figures."""
    page = install.CHECKPOINT / install.CARD

    assert page.read_text("utf-8") == written(page), "run `python -m deploy.docs.tables`"


def test_the_first_page_has_the_first_answer() -> None:
    """README.md shows what `make run` shows."""
    page = (ROOT / "README.md").read_text("utf-8")

    assert card.with_first_answer(page, card.read()["first_answer"]) == page, _AGAIN


def test_the_first_answer_is_replaced() -> None:
    """The rest of the page stays."""
    page = "before\n```text\na.jpg, asked 'x':\n\ncat 0.5\n```\nafter\n```sh\nmake\n```\n"

    found = card.with_first_answer(page, "a.jpg, asked 'x':\n\ncat 0.9\n")

    assert found == page.replace("0.5", "0.9")


def test_the_plot_shows_these_figures() -> None:
    """It was drawn in the same run."""
    figures = card.read()["figures"]
    count = sum(kind["count"] for kind in figures["questions"].values())

    plot = card.PLOT.read_text("utf-8")

    assert f">{count} answers, " in plot
    assert f"ECE {figures['calibration']['error']:.3f}<" in plot


def test_every_question_was_answered() -> None:
    """None is missing from the figures."""
    asked = [json.loads(line)["kind"] for line in measure.QUESTIONS.read_text("utf-8").splitlines()]

    counted = {kind: each["count"] for kind, each in card.read()["figures"]["questions"].items()}

    assert counted == {kind: asked.count(kind) for kind in asked}


def test_the_prepared_form_has_the_same_card() -> None:
    """It is copied there, and its digest with it."""
    cards = [(folder / install.CARD).read_text("utf-8") for folder in _FOLDERS]

    assert cards[0] == cards[1], _AGAIN


@pytest.mark.parametrize(
    ("former", "expected"),
    [
        (None, "| **all** | **40** | **26 (65.0%)** |"),
        (_FIGURES, "| **all** | **40** | **26 (65.0%)** | **26 (65.0%)** |"),
    ],
    ids=["alone", "compared"],
)
def test_questions_are_summed(former: dict[str, Any] | None, expected: str) -> None:
    """The last row has all kinds, and an earlier checkpoint has a column."""
    table = card.TABLES["mini-questions"]({**_MEASURED, "former": former})

    assert table.splitlines()[-1] == expected


def test_what_was_not_measured_stays_empty() -> None:
    """Without ImageNet's photographs there is no figure of them."""
    figures = {**_FIGURES, "imagenet": None}

    table = card.TABLES["mini-imagenet"]({**_MEASURED, "figures": figures, "former": _FIGURES})

    assert table.splitlines()[-1] == "| top-5 |  | 75.0% |"


def test_sure_answers_are_compared() -> None:
    """How many of them are wrong, and how far scores are from shares in general."""
    table = card.TABLES["mini-scores"]({**_MEASURED, "former": _FIGURES})

    assert "| wrong answers among those above 0.9 | 2 of 30 | 2 of 30 |" in table
    assert "| the same, if perfectly calibrated | 0.050 | 0.050 |" in table


def test_questions_are_counted_by_whether_their_source_trains() -> None:
    """Each has its share that is right, its calibration error and its sure answers."""
    table = card.TABLES["mini-sources"]({**_MEASURED, "former": None})

    assert table.splitlines()[-2:] == [
        "| other photographs of the source train | 20 | 17 (85.0%) | 0.123 | 2 of 30 |",
        "| no photograph of the source trains | 20 | 9 (45.0%) | 0.123 | 2 of 30 |",
    ]


def test_questions_are_split_by_source(tmp_path: Path) -> None:
    """A source that has photographs on both sides trains; no question is lost."""
    sources, questions = tmp_path / "sources.json", tmp_path / "questions.jsonl"
    pictures = {"zoo": ["train", "held-out"], "farm": ["held-out"]}
    listed = [
        {"id": name, "pictures": [{"split": split} for split in splits]} for name, splits in pictures.items()
    ]
    sources.write_text(json.dumps({"sources": listed}), "utf-8")
    lines = [f'{{"image": "{name}/{at}.jpg"}}\n' for at, name in enumerate(("zoo", "farm", "zoo"))]
    questions.write_text("".join(lines), "utf-8")

    parts = measure.by_source(questions, sources)

    assert parts == {"seen": [lines[0], lines[2]], "unseen": [lines[1]]}


def test_photographs_named_by_class_get_folders(tmp_path: Path) -> None:
    """ImageNet's samples are named so."""
    samples = [tmp_path / name for name in ("n01440764_tench.JPEG", "n02012849_crane.JPEG")]
    samples.append(tmp_path / "n03126707_crane.JPEG")  # a machine, of the same name
    for sample in samples:
        sample.write_bytes(b"")

    measure.by_class(samples, tmp_path / "classes")

    found = {path.relative_to(tmp_path / "classes").as_posix() for path in tmp_path.rglob("classes/*/*")}
    assert found == {
        "tench/n01440764_tench.JPEG",
        "crane/n02012849_crane.JPEG",
        "crane/n03126707_crane.JPEG",
    }
