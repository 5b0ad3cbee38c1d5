"""Scores and ranks of answers, against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from alignserve import Client
from alignserve.evaluate.scoring import Answers, answer
from alignserve.testing import FakeServer


def unit(*rows: tuple[float, ...]) -> np.ndarray:
    vectors = np.array(rows, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_scores_are_a_softmax_with_the_temperature() -> None:
    """Similarities 1 and 0 at temperature 0.5 are logits 2 and 0."""
    images, labels = unit((1, 0), (1, 0)), unit((1, 0), (0, 1))

    found = answer(images, labels, np.array([0, 1]), temperature=0.5)

    right = math.exp(2) / (math.exp(2) + 1)
    assert found.predicted.tolist() == [0, 0]
    assert found.rank.tolist() == [0, 1]
    assert found.score == pytest.approx([right, right])
    assert found.negative_log_likelihood == pytest.approx([-math.log(right), -math.log(1 - right)])
    assert found.brier == pytest.approx([2 * (1 - right) ** 2, 2 * right**2])


def test_labels_with_equal_scores_keep_their_order() -> None:
    """The first of two equal labels wins, as in `Classify`, whichever is right."""
    images, labels = unit((1, 0), (1, 0), (1, 0)), unit((0, 1), (1, 0), (1, 0))

    found = answer(images, labels, np.array([1, 2, 0]), temperature=1.0)

    assert found.predicted.tolist() == [1, 1, 1]
    assert found.rank.tolist() == [0, 1, 2]
    assert found.is_right.tolist() == [True, False, False]


def test_likelihoods_of_hopeless_labels_are_finite() -> None:
    """A score that rounds to 0 has a likelihood all the same."""
    found = answer(unit((1, 0)), unit((1, 0), (-1, 0)), np.array([1]), temperature=1e-3)

    assert found.negative_log_likelihood.tolist() == pytest.approx([2000.0])


def test_parts_can_be_picked_and_joined() -> None:
    """Joining what was picked gives all answers back."""
    answers = answer(unit((1, 0), (0, 1)), unit((1, 0), (0, 1)), np.array([0, 0]), temperature=1.0)
    chosen = np.array([True, False])

    joined = Answers.joined([answers.pick(chosen), answers.pick(~chosen)])

    assert len(joined) == 2
    assert joined.rank.tolist() == answers.rank.tolist()


def test_scores_are_those_of_classify(server: FakeServer, client: Client) -> None:
    """The same image, labels and templates give the same order and scores from the server."""
    names, templates = ["cat", "dog", "bird"], ["a photo of a {label}", "{label}"]
    image = client.embed_image(b"\xff\xd8\xffphoto")
    prompts = [[template.replace("{label}", name) for template in templates] for name in names]
    labels = np.stack([client.embed_text(texts).mean(axis=0) for texts in prompts])
    labels /= np.linalg.norm(labels, axis=1, keepdims=True)

    classified = client.classify(b"\xff\xd8\xffphoto", names, prompt_templates=templates)
    found = answer(np.stack([image]), labels, np.array([0]), client.model_info().temperature)

    assert classified[0].label_index == found.predicted[0]
    assert classified[0].score == pytest.approx(found.score[0], abs=1e-5)
