"""Chooses the temperature: the one at which the scores of small sets of labels are most likely.

Questions about the collections that a rehearsal has not seen say how confident to be about photographs from
other sources.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from server.recipes.mini import text_start
from server.recipes.mini.captions import Photo
from server.recipes.mini.photo_sets import read_features
from server.recipes.mini.vision import Head

QUESTIONS = Path(__file__).parent / "calibration.jsonl"
"""Questions about photographs that the rehearsal did not see, as people would ask them."""

_TOGETHER = 128
_TEMPERATURES = np.exp(np.linspace(np.log(0.01), np.log(0.3), 120))


def write(text: Path, rehearsal: Path, extracted: Path, photos: Sequence[Photo], out: Path) -> None:
    """Writes `calibration.json`: how the rehearsal does on `QUESTIONS`, and the temperature that suits it."""
    tower = text_start.read(text / "vocab.txt", rehearsal / "tower.safetensors")
    head = Head()
    head.load_state_dict(load_file(rehearsal / "head.safetensors"))
    asked = [json.loads(line) for line in QUESTIONS.read_text("utf-8").splitlines()]
    labels = sorted({label for each in asked for label in each["labels"]})
    with torch.inference_mode():
        images = nn.functional.normalize(head(read_features(extracted)[:, 0]))
        embedded = [tower(labels[at : at + _TOGETHER]) for at in range(0, len(labels), _TOGETHER)]
        texts = nn.functional.normalize(torch.cat(embedded))
    row_of = {photo.file: at for at, photo in enumerate(photos) if photo.is_withheld}
    column_of = {label: at for at, label in enumerate(labels)}
    questions = []
    for each in asked:
        wrong = [label for label in each["labels"] if label != each["answer"]]
        columns = [column_of[label] for label in (each["answer"], *wrong)]
        questions.append((texts[columns] @ images[row_of[each["image"]]]).numpy())
    document = {
        "questions": len(questions),
        "right": sum(bool(cosines[0] > cosines[1:].max()) for cosines in questions),
        "temperature": best_temperature(questions),
    }
    (out / "calibration.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def best_temperature(questions: Sequence[NDArray[np.float32]]) -> float:
    """The temperature with the least mean -log score of the right labels.

    Each question is the cosines of a picture with its labels, (labels,), of which the first is right.
    """
    cosines = np.full((len(questions), max(len(each) for each in questions)), -np.inf)
    for row, each in enumerate(questions):
        cosines[row, : len(each)] = each
    behind = cosines - cosines[:, :1]
    losses = [np.log(np.exp(behind / each).sum(axis=1)).mean() for each in _TEMPERATURES]
    return float(_TEMPERATURES[int(np.argmin(losses))])
