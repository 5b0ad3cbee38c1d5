"""Temperature and calibration error."""

from __future__ import annotations

import numpy as np
import pytest

from server.recipes.mini.calibration import (
    Question,
    best_temperature,
    expected_calibration_error,
    reliability,
    scores,
)


def test_scores_of_half_right_questions_ask_for_a_score_of_a_half() -> None:
    """Two labels 0.1 apart, right every second time: no temperature is better than a high one."""
    cosines = np.array([0.3, 0.2], np.float32)
    questions = [Question(cosines, at % 2) for at in range(100)]

    temperature = best_temperature(questions)

    assert scores(questions[0], temperature).max() < 0.6


def test_scores_of_nine_in_ten_right_questions_come_out_at_nine_tenths() -> None:
    """The best temperature makes the score the share that is right."""
    cosines = np.array([0.3, 0.2], np.float32)
    questions = [Question(cosines, int(at % 10 == 0)) for at in range(100)]

    temperature = best_temperature(questions)
    measured = reliability(questions, temperature)

    assert scores(questions[0], temperature).max() == pytest.approx(0.9, abs=0.01)
    assert measured.right == 0.9
    assert measured.expected_error < 0.01


def test_the_calibration_error_weighs_bins_by_their_size() -> None:
    """Three of four questions in a bin that is 0.05 off, one in a bin that is 0.45 off."""
    best = np.array([0.95, 0.95, 0.95, 0.55])
    right = np.array([True, True, True, True])

    assert expected_calibration_error(best, right) == pytest.approx(0.75 * 0.05 + 0.25 * 0.45)


def test_a_wrong_answer_above_nine_tenths_is_counted() -> None:
    """Both are sure; one is wrong."""
    questions = [Question(np.array([1.0, 0.0], np.float32), answer) for answer in (0, 1)]

    assert reliability(questions, 0.1).sure_and_wrong == 0.5
