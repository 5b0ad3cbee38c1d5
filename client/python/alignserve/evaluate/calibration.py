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
        found = _binned(answers.score, answers.is_right, bins)
        is_sure = answers.score > SURE
        total = len(answers)
        return cls(
            bins=found,
            expected_error=sum(each.count * abs(each.gap) for each in found) / total,
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
            "maximum_calibration_error": data.pop("maximum_error"),
            "sure_above": SURE,
            **data,
        }


def _binned(scores: NDArray[np.float64], is_right: NDArray[np.bool_], bins: int) -> tuple[Bin, ...]:
    edges = np.linspace(0.0, 1.0, bins + 1)
    bin_of = np.digitize(scores, edges[1:-1], right=True)
    found = []
    for number in range(bins):
        chosen = bin_of == number
        count = int(chosen.sum())
        means = (float(scores[chosen].mean()), float(is_right[chosen].mean())) if count else (None, None)
        found.append(Bin(float(edges[number]), float(edges[number + 1]), count, *means))
    return tuple(found)
