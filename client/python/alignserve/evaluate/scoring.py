"""Scores images against labels as `Classify` does, and compares the answers with the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from alignserve.evaluate.vectors import IntArray, cosines


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model answers to some questions, one element of each array per question.

    Attributes:
        predicted: Number of the label with the best score; of labels with equal scores, the first.
        score: Of that label: its probability by softmax with the model's temperature.
        rank: Of the right label, 0 for the best. Labels with the same score keep their order.
        negative_log_likelihood: Of the right label, in nats.
        brier: Sum over the labels of the squared difference of score and truth, from 0 to 2.
    """

    predicted: NDArray[np.int64]
    score: NDArray[np.float64]
    rank: NDArray[np.int64]
    negative_log_likelihood: NDArray[np.float64]
    brier: NDArray[np.float64]

    @property
    def is_right(self) -> NDArray[np.bool_]:
        """Returns for each question whether the best label is the right one."""
        return np.equal(self.rank, 0)

    def __len__(self) -> int:
        return len(self.rank)

    def pick(self, chosen: NDArray[np.bool_]) -> Answers:
        """Returns some of the answers."""
        return Answers(*(getattr(self, field.name)[chosen] for field in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """Returns the answers of all parts; at least one part."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))


def answer(
    images: NDArray[np.float32], labels: NDArray[np.float32], right: IntArray, temperature: float
) -> Answers:
    """Answers which label fits each image.

    Args:
        images: (images, dimension), each of length 1.
        labels: (labels, dimension), each of length 1.
        right: (images,), the number of each image's right label.
        temperature: Of the model: a logit is the similarity divided by it.
    """
    logits = cosines(images, labels).astype(np.float64) / temperature  # (images, labels)
    shifted = logits - logits.max(axis=1, keepdims=True)
    weights = np.exp(shifted)
    sums = weights.sum(axis=1, keepdims=True)
    scores = weights / sums
    rows = np.arange(len(right))
    own = logits[rows, right][:, None]
    is_before = (logits > own) | ((logits == own) & (np.arange(len(labels)) < right[:, None]))
    predicted = logits.argmax(axis=1)  # the first of several
    errors = np.square(scores).sum(axis=1) - 2 * scores[rows, right] + 1
    return Answers(
        predicted=predicted,
        score=scores[rows, predicted],
        rank=is_before.sum(axis=1),
        negative_log_likelihood=np.log(sums[:, 0]) - shifted[rows, right],
        brier=errors,
    )
