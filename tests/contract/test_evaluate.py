"""`alignserve evaluate` against a real server on the embedded checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from alignserve import Client
from alignserve.cli import main

from tests.processes import ServerProcess

pytestmark = pytest.mark.contract

PHOTOS = Path(__file__).parents[1] / "data/photos"
NAMES = ("astronaut", "cat", "coffee", "rocket")
TEMPLATES = ("a photo of a {label}", "{label}")


def test_answers_are_those_of_classify(server: ServerProcess, tmp_path: Path) -> None:
    """Every answer and score is what `Classify` returns for the image, the classes and the templates."""
    for name in NAMES:
        (tmp_path / f"photos/{name}").mkdir(parents=True)
        shutil.copy(PHOTOS / f"{name}.jpg", tmp_path / f"photos/{name}")
    arguments = [part for template in TEMPLATES for part in ("--template", template)]

    code = main(
        [
            *("--server", server.address, "evaluate", str(tmp_path / "photos")),
            *("--to", str(tmp_path / "out"), *arguments),
        ]
    )

    assert code == 0
    answers = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text().splitlines()]
    with Client(server.address) as client:
        for answer, name in zip(answers, NAMES, strict=True):
            best = client.classify(PHOTOS / f"{name}.jpg", NAMES, prompt_templates=TEMPLATES)[0]
            assert answer["predicted"] == best.label
            assert answer["score"] == pytest.approx(best.score, abs=2e-6)


def test_captions_find_their_photos(server: ServerProcess, tmp_path: Path) -> None:
    """The embedded checkpoint finds a cat and a cup of coffee both ways."""
    lines = ["image,caption", "cat.jpg,a photo of a cat", "cat.jpg,a cat", "coffee.jpg,a cup of coffee"]
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")

    code = main(
        [
            *("--server", server.address, "evaluate", str(tmp_path / "captions.csv")),
            *("--image-root", str(PHOTOS), "--to", str(tmp_path / "out")),
        ]
    )

    assert code == 0
    found = json.loads((tmp_path / "out/report.json").read_text())["retrieval"]
    assert found["image_to_text"]["recall_at_1"] == 1.0
    assert found["text_to_image"]["recall_at_1"] == 1.0
