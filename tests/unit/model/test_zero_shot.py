"""Labels become prompts, and images are scored against labels."""

from __future__ import annotations

import numpy as np
import pytest
from alignserve_server.model.zero_shot import (
    is_template,
    prompts_of,
    score_images,
)

from tests.unit.fakes import unit

LABELS = np.stack([unit(1, 0), unit(0, 1), unit(1, 1), unit(0, 1)])


def score_all(images, labels, **options):
    """Scores images, all at once."""
    return list(score_images(images, labels, **options))


def score(image, labels, **options):
    """Scores one image."""
    (found,) = score_all(image[np.newaxis], labels, **options)
    return found


@pytest.mark.parametrize(
    ("label", "templates", "expected"),
    [
        ("cat", [], ["cat"]),
        ("cat", ["a photo of a {label}"], ["a photo of a cat"]),
        ("cat", ["{label}", "one {label}!"], ["cat", "one cat!"]),
        ("{label}", ["a {label}"], ["a {label}"]),
    ],
    ids=["no template", "one", "two", "label that looks like a placeholder"],
)
def test_templates_are_filled_in(label, templates, expected):
    """Each template gives one prompt; without templates, the label itself is the prompt."""
    assert [*prompts_of(label, templates)] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("{label}", True), ("a {label}", True), ("", False), ("{LABEL}", False), ("{label}{label}", False)],
)
def test_a_template_has_exactly_one_placeholder(text, expected):
    """A template with no placeholder or two is invalid."""
    assert is_template(text) is expected


def test_the_score_is_the_softmax_of_cosine_by_temperature():
    """Cosines 1 and 0 at temperature 0.5 give logits 2 and 0."""
    labels = np.stack([unit(0, 1), unit(1, 0)])

    best, other = score(unit(1, 0), labels, temperature=0.5)

    assert (best.label_index, best.similarity, best.logit) == (1, 1.0, 2.0)
    assert (other.label_index, other.similarity, other.logit) == (0, 0.0, 0.0)
    assert best.score == pytest.approx(np.exp(2) / (np.exp(2) + 1))
    assert other.score == pytest.approx(1 / (np.exp(2) + 1))


def test_one_label_gets_all_of_the_score():
    """A single label scores 1, however dissimilar it is."""
    (only,) = score(unit(1, 0), unit(-1, 0)[None], temperature=0.1)

    assert (only.score, only.similarity) == (1.0, -1.0)


@pytest.mark.parametrize(
    ("top_k", "expected"), [(0, [2, 1, 3, 0]), (1, [2]), (4, [2, 1, 3, 0]), (5, [2, 1, 3, 0])]
)
def test_returns_the_best_first_and_at_most_top_k(top_k, expected):
    """Labels are sorted by score and limited to `top_k`; 0 returns all."""
    scored = score(unit(1, 2), LABELS, temperature=1.0, top_k=top_k)

    assert [label.label_index for label in scored] == expected


def test_equal_labels_stay_in_the_order_of_the_request():
    """Equal scores keep the order of the request, even for many labels: the sort is stable."""
    scored = score(unit(1, 2), np.tile(LABELS[:2], (50, 1)), temperature=1.0)

    assert [label.label_index for label in scored] == [*range(1, 100, 2), *range(0, 100, 2)]


def test_equal_labels_get_equal_scores():
    """A label's score does not depend on its position, down to the last digit."""
    rng = np.random.default_rng(0)
    label, images = unit(*rng.standard_normal(640)), rng.standard_normal((7, 640)).astype(np.float32)

    scored = score_all(images, np.tile(label, (101, 1)), temperature=0.01)

    assert [[label.label_index for label in of_image] for of_image in scored] == [[*range(101)]] * 7


def test_each_image_is_scored_on_its_own():
    """Other images in the request do not change the scores."""
    images = np.stack([unit(1, 2), unit(2, 1), unit(-1, 0)])

    scored = score_all(images, LABELS, temperature=1.0, top_k=3)

    assert scored == [score(image, LABELS, temperature=1.0, top_k=3) for image in images]


def test_top_k_does_not_change_scores():
    """The softmax covers all labels, including those that are not returned."""
    everything = score(unit(1, 2), LABELS, temperature=1.0)

    best = score(unit(1, 2), LABELS, temperature=1.0, top_k=2)

    assert best == everything[:2]
    assert sum(label.score for label in everything) == pytest.approx(1.0)


def test_a_tiny_temperature_does_not_overflow():
    """Logits of ±1,000,000 give scores of 1 and 0."""
    scored = score(unit(1, 0), np.stack([unit(-1, 0), unit(1, 0)]), temperature=1e-6)

    assert [label.score for label in scored] == [1.0, 0.0]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_similarity_never_leaves_the_range_of_a_cosine(sign):
    """Similarities are clipped: rounding can make the product of two unit vectors more than 1."""
    almost_unit = np.array([1.0000001, 0.0], np.float32)

    (only,) = score(almost_unit, sign * almost_unit[None], temperature=1.0)

    assert abs(only.logit) > 1.0
    assert only.similarity == sign
