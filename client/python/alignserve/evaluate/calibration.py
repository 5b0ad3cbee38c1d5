"""Whether scores mean what they say: of all answers with a score of 0.9, nine in ten should be right."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignserve.evaluate.scoring import Answers

DEFAULT_BINS = 15  # as Guo et al. have
SURE = 0.9
"""Scores above this are what people take for certain."""


@dataclass(frozen=True, slots=True)
class Bin:
    """The answers whose score is above `low` and at most `high`.

    Attributes:
        low: Of the interval.
        high: Of the interval.
        count: Number of answers.
        mean_score: Of these answers, or `None` if there are none.
        accuracy: Share of them that is right, or `None`.
    """

    low: float
    high: float
    count: int
    mean_score: float | None
    accuracy: float | None

    @property
    def gap(self) -> float:
        """Returns by how much the mean score is above the accuracy; 0 for an empty bin."""
        return 0.0 if self.mean_score is None or self.accuracy is None else self.mean_score - self.accuracy


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well scores agree with accuracy, over the best label of each question.

    Attributes:
        bins: Of equal width, from score 0 to 1 (Guo et al., 2017, https://arxiv.org/abs/1706.04599).
        expected_error: Mean over the answers of the distance of score and accuracy in their bin.
        error_if_calibrated: About what `expected_error` would be if each answer were right as often as its
            score says; less with more answers (Bröcker and Smith, 2007, https://doi.org/10.1175/WAF993.1).
        maximum_error: The greatest such distance.
        mean_score: Of all answers.
        accuracy: Share of answers that is right.
        brier: Mean over the questions of the squared error, summed over the labels; 0 is best, 2 worst.
        negative_log_likelihood: Mean over the questions, in nats.
        sure: Number of answers with a score above `SURE`.
        wrong: Number of wrong answers.
        sure_and_wrong: Number of answers that are both.
    """

    bins: tuple[Bin, ...]
    expected_error: float
    error_if_calibrated: float
    maximum_error: float
    mean_score: float
    accuracy: float
    brier: float
    negative_log_likelihood: float
    sure: int
    wrong: int
    sure_and_wrong: int

    @classmethod
    def of(cls, answers: Answers, bins: int = DEFAULT_BINS) -> Calibration:
        """Measures some answers; at least one."""
        edges = np.linspace(0.0, 1.0, bins + 1)
        bin_of = np.digitize(answers.score, edges[1:-1], right=True)
        found = _binned(answers, bin_of, edges)
        is_sure = answers.score > SURE
        total = len(answers)
        return cls(
            bins=found,
            expected_error=sum(each.count * abs(each.gap) for each in found) / total,
            error_if_calibrated=_error_if_calibrated(answers.score, bin_of),
            maximum_error=max(abs(each.gap) for each in found),
            mean_score=float(answers.score.mean()),
            accuracy=float(answers.is_right.mean()),
            brier=float(answers.brier.mean()),
            negative_log_likelihood=float(answers.negative_log_likelihood.mean()),
            sure=int(is_sure.sum()),
            wrong=int((~answers.is_right).sum()),
            sure_and_wrong=int((is_sure & ~answers.is_right).sum()),
        )

    def as_data(self) -> dict[str, Any]:
        """Returns the measures as JSON has them."""
        data = asdict(self)
        return {
            "expected_calibration_error": data.pop("expected_error"),
            "calibration_error_if_calibrated": data.pop("error_if_calibrated"),
            "maximum_calibration_error": data.pop("maximum_error"),
            "sure_above": SURE,
            **data,
        }


def _error_if_calibrated(scores: NDArray[np.float64], bin_of: NDArray[np.int64]) -> float:
    """Sums the mean deviations of the bins' numbers of right answers, taken as normally distributed."""
    variances = np.bincount(bin_of, weights=scores * (1 - scores))
    return float(np.sqrt(2 / np.pi * variances).sum() / len(scores))


def _binned(answers: Answers, bin_of: NDArray[np.int64], edges: NDArray[np.float64]) -> tuple[Bin, ...]:
    scores, is_right = answers.score, answers.is_right
    found = []
    for number in range(len(edges) - 1):
        chosen = bin_of == number
        count = int(chosen.sum())
        means = (float(scores[chosen].mean()), float(is_right[chosen].mean())) if count else (None, None)
        found.append(Bin(float(edges[number]), float(edges[number + 1]), count, *means))
    return tuple(found)
