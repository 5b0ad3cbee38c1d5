"""The calibration error, against values computed by hand and a second way to compute it."""

from __future__ import annotations

import numpy as np
import pytest
from alignserve.evaluate.calibration import Calibration
from alignserve.evaluate.scoring import Answers


def answers(scores: list[float], right: list[bool]) -> Answers:
    zeros = np.zeros(len(scores))
    ranks = np.where(right, 0, 1)
    return Answers(np.zeros(len(scores), np.int64), np.array(scores), ranks, zeros + 0.5, zeros + 0.25)


def test_error_is_the_mean_gap_of_the_bins() -> None:
    """Two answers near 0.8 of which one is right, and one at 0.3 that is right: (2 * 0.3 + 0.7) / 3."""
    found = Calibration.of(answers([0.79, 0.81, 0.3], [True, False, True]), bins=2)

    assert found.expected_error == pytest.approx((2 * abs(0.8 - 0.5) + abs(0.3 - 1.0)) / 3)
    assert found.maximum_error == pytest.approx(0.7)
    assert found.mean_score == pytest.approx(1.9 / 3)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.brier == pytest.approx(0.25)
    assert found.negative_log_likelihood == pytest.approx(0.5)


def test_bins_include_their_upper_end() -> None:
    """As Guo et al. have them: 0.2 is in the bin from 0.1 to 0.2, and 1 in the last."""
    found = Calibration.of(answers([0.2, 0.2000001, 1.0], [True, True, True]), bins=10)

    assert [each.count for each in found.bins] == [0, 1, 1, 0, 0, 0, 0, 0, 0, 1]
    assert found.bins[0].accuracy is None


def test_sure_answers_are_above_nine_tenths() -> None:
    """0.9 itself is not; those that are wrong are counted among all wrong ones."""
    found = Calibration.of(answers([0.9, 0.95, 0.99, 0.4], [False, False, True, False]))

    assert (found.sure, found.wrong, found.sure_and_wrong) == (2, 3, 1)


def test_error_agrees_with_sorting_into_bins_one_by_one() -> None:
    """A thousand answers, compared with a loop over them."""
    chance = np.random.default_rng(3)
    scores = chance.random(1000)
    right = chance.random(1000) < scores**2
    in_bins: list[list[int]] = [[] for _ in range(15)]
    for number, score in enumerate(scores.tolist()):
        in_bins[next(m for m in range(15) if score <= (m + 1) / 15)].append(number)
    expected = sum(
        abs(sum(scores[n] - right[n] for n in numbers)) / 1000 for numbers in in_bins
    )  # a bin's count cancels the divisor of its means

    assert Calibration.of(answers(scores.tolist(), right.tolist())).expected_error == pytest.approx(expected)


@pytest.mark.parametrize("count", [60, 1000])
def test_the_error_if_calibrated_is_that_of_honest_scores(count: int) -> None:
    """On average over draws of which answers are right, each as often as its score says."""
    chance = np.random.default_rng(2)
    scores = chance.uniform(0.3, 1.0, count)
    drawn = [
        Calibration.of(answers(scores.tolist(), (chance.random(count) < scores).tolist())) for _ in range(500)
    ]

    mean = np.mean([each.expected_error for each in drawn])

    assert drawn[0].error_if_calibrated == pytest.approx(mean, rel=0.05)


def test_the_report_has_both_calibration_errors() -> None:
    """Under the names that people search for."""
    report = Calibration.of(answers([0.5, 0.5], [True, False])).as_data()

    assert report["expected_calibration_error"] == 0
    assert report["calibration_error_if_calibrated"] == pytest.approx((2 / np.pi * 0.5) ** 0.5 / 2)


def test_scores_that_mean_what_they_say_have_a_small_error() -> None:
    """If a score of s is right with probability s, only chance is left."""
    chance = np.random.default_rng(1)
    scores = chance.uniform(0.2, 1.0, 100_000)
    right = chance.random(100_000) < scores

    assert Calibration.of(answers(scores.tolist(), right.tolist())).expected_error < 0.01
