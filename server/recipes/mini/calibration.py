"""Chooses the temperature: the one at which the scores of small sets of labels are most likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_TEMPERATURES = np.exp(np.linspace(np.log(0.01), np.log(0.3), 120))


@dataclass(frozen=True)
class Question:
    """Cosines of one picture with its labels, and which label is right."""

    cosines: Floats  # (labels,)
    answer: int


@dataclass(frozen=True)
class Reliability:
    """How often the best label is right, against the scores it gets."""

    questions: int
    right: float
    mean_score: float
    expected_error: float  # expected calibration error, ten bins of equal width
    sure_and_wrong: float  # share of the questions answered wrong with a score above 0.9


def scores(question: Question, temperature: float) -> Floats:
    """The softmax of cosines over the temperature."""
    logits = question.cosines / temperature
    raised = np.exp(logits - logits.max())
    return raised / raised.sum()


def best_temperature(questions: Sequence[Question]) -> float:
    """The temperature with the least mean -log score of the right labels."""
    losses = [
        -np.mean([np.log(scores(each, temperature)[each.answer] + 1e-12) for each in questions])
        for temperature in _TEMPERATURES
    ]
    return float(_TEMPERATURES[int(np.argmin(losses))])


def reliability(questions: Sequence[Question], temperature: float) -> Reliability:
    """Measures all questions at a temperature."""
    every = [scores(each, temperature) for each in questions]
    best = np.array([each.max() for each in every])
    right = np.array(
        [int(each.argmax()) == question.answer for each, question in zip(every, questions, strict=True)]
    )
    return Reliability(
        questions=len(questions),
        right=float(right.mean()),
        mean_score=float(best.mean()),
        expected_error=expected_calibration_error(best, right),
        sure_and_wrong=float(((best > 0.9) & ~right).mean()),
    )


def expected_calibration_error(best: NDArray[np.floating], right: NDArray[np.bool_], bins: int = 10) -> float:
    """The mean distance between score and share right, over bins of equal width weighted by their size."""
    bin_of = np.minimum((best * bins).astype(int), bins - 1)
    error = 0.0
    for each in range(bins):
        inside = bin_of == each
        if inside.any():
            error += inside.mean() * abs(best[inside].mean() - right[inside].mean())
    return float(error)
