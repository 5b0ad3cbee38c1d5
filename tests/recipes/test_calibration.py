"""The temperature, and the questions that set it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from server.recipes.mini import calibration, measure, photo_list, text_start
from server.recipes.mini.captions import Photo


def _questions(wrong: int) -> list[np.ndarray[tuple[int], np.dtype[np.float32]]]:
    """Ten questions of two labels that are 0.1 apart; the better one is wrong in some of them."""
    return [np.array([0.2, 0.3] if at < wrong else [0.3, 0.2], np.float32) for at in range(10)]


@pytest.mark.parametrize("wrong", [1, 2, 3])
def test_the_score_is_the_share_that_is_right(wrong: int) -> None:
    """Nine in ten right ask for a score of 0.9, eight in ten for 0.8."""
    temperature = calibration.best_temperature(_questions(wrong))

    assert 1 / (1 + np.exp(-0.1 / temperature)) == pytest.approx(1 - wrong / 10, abs=0.01)


def test_scores_of_half_right_questions_ask_for_a_score_of_a_half() -> None:
    """No temperature is better than a high one."""
    temperature = calibration.best_temperature(_questions(5))

    assert 1 / (1 + np.exp(-0.1 / temperature)) < 0.6


def test_questions_may_have_different_numbers_of_labels() -> None:
    """A label that is far behind changes nothing."""
    longer = [np.append(each, np.float32(-9)) for each in _questions(2)]

    assert calibration.best_temperature([*_questions(2), *longer]) == calibration.best_temperature(
        _questions(2)
    )


def test_a_question_compares_its_own_photograph_with_its_own_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight in ten questions about two photographs are right, wherever the right label stands."""
    every = [Photo(f"{at}.jpg", ("x",), collection=str(at)) for at in range(99)]
    cat, dog = [photo.file for photo in every if photo.is_withheld][:2]
    embedded = {"a cat": [1.0, 0.0], "a dog": [0.9, 0.43589]}  # a cosine of 0.9, so 0.1 apart
    seen = {cat: embedded["a cat"], dog: embedded["a dog"]}
    views = torch.tensor([[seen.get(photo.file, [-1.0, 0.0]), [0.0, -1.0]] for photo in every])
    asked = [
        {"image": image, "labels": labels, "answer": answer}
        for image, own, other in ((cat, "a cat", "a dog"), (dog, "a dog", "a cat"))
        for answer in (own, own, own, own, other)
        for labels in ([own, other], [other, own])
    ]
    questions = tmp_path / "calibration.jsonl"
    questions.write_text("".join(f"{json.dumps(each)}\n" for each in asked), "utf-8")

    def embed(texts: list[str]) -> torch.Tensor:
        return torch.tensor([embedded[text] for text in texts])

    monkeypatch.setattr(calibration, "QUESTIONS", questions)
    monkeypatch.setattr(calibration, "read_features", lambda folder: views)
    monkeypatch.setattr(calibration, "load_file", lambda path: {})
    monkeypatch.setattr(calibration, "Head", nn.Identity)
    monkeypatch.setattr(text_start, "read", lambda pieces, weights: embed)

    calibration.write(tmp_path, tmp_path, tmp_path, every, tmp_path)

    found = json.loads((tmp_path / "calibration.json").read_text("utf-8"))
    assert (found["questions"], found["right"]) == (20, 16)
    assert 1 / (1 + np.exp(-0.1 / found["temperature"])) == pytest.approx(0.8, abs=0.01)


def test_the_temperature_is_asked_of_photographs_that_the_rehearsal_leaves_out() -> None:
    """They train the checkpoint; those that measure it are others."""
    withheld = {each.photo.file for each in photo_list.read() if each.photo.is_withheld}
    asked = [json.loads(line) for line in calibration.QUESTIONS.read_text("utf-8").splitlines()]
    measuring = {json.loads(line)["image"] for line in measure.QUESTIONS.read_text("utf-8").splitlines()}

    assert asked
    for question in asked:
        assert question["image"] in withheld
        assert question["image"] not in measuring
        assert question["answer"] in question["labels"]
        assert len(set(question["labels"])) == len(question["labels"]) > 2
