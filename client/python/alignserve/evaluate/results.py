"""What an evaluation finds, and how JSON has it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from alignserve.evaluate.calibration import Calibration
from alignserve.evaluate.retrieval import Recall


@dataclass(frozen=True, slots=True)
class Group:
    """How well the questions of one class or kind are answered.

    Attributes:
        name: Of the class or kind.
        count: Number of questions.
        right: Number of right answers.
        mean_score: Of the best labels.
        mistaken_for: The most frequent wrong answer; empty if there is none.
        sure_and_wrong: Number of wrong answers with a high score, see `calibration.SURE`.
        neighbour_right: Number of images whose nearest neighbour has their class; `None` if not measured.
    """

    name: str
    count: int
    right: int
    mean_score: float
    mistaken_for: str = ""
    sure_and_wrong: int = 0
    neighbour_right: int | None = None

    @property
    def accuracy(self) -> float:
        """Returns the share of right answers."""
        return self.right / self.count

    def as_data(self) -> dict[str, Any]:
        """Returns the measures as JSON has them."""
        data = {**asdict(self), "accuracy": self.accuracy}
        if self.neighbour_right is None:
            del data["neighbour_right"]
        return data


@dataclass(frozen=True, slots=True)
class AnswerLine:
    """An answer, for a file of all of them."""

    key: str
    answer: str
    predicted: str
    score: float
    is_right: bool
    kind: str = ""

    def as_data(self) -> dict[str, Any]:
        """Returns the answer as JSON has it."""
        data = {
            "key": self.key,
            "answer": self.answer,
            "predicted": self.predicted,
            "score": round(self.score, 6),
            "right": self.is_right,
        }
        return {**data, "kind": self.kind} if self.kind else data


@dataclass(slots=True)
class Classification:
    """Zero-shot classification, and the neighbours of each image.

    Attributes:
        classes: Number of labels for each image to choose from.
        top_1: Share of images whose best label is right.
        top_5: Share of images with the right label among the best five; `None` with five classes or fewer.
        mean_per_class: Mean over the classes of the share of their images that is right.
        calibration: Of the scores.
        groups: By class, in the order of the classes; those without an image are left out.
        neighbours: Recall of the right class among the nearest images; `None` if no class has two images. An
            image that is the only one of its class is a query that finds nothing.
        neighbours_of: `rest of the set`, or the source of the images searched.
        lines: The answers, if they were asked for.
    """

    classes: int
    top_1: float
    top_5: float | None
    mean_per_class: float
    calibration: Calibration
    groups: list[Group]
    neighbours: Recall | None
    neighbours_of: str = "rest of the set"
    lines: list[AnswerLine] = field(default_factory=list)

    def as_data(self) -> dict[str, Any]:
        """Returns the measures as JSON has them."""
        data: dict[str, Any] = {
            "classification": {
                "classes": self.classes,
                "top_1": self.top_1,
                "top_5": self.top_5,
                "mean_per_class": self.mean_per_class,
                "by_class": [group.as_data() for group in self.groups],
            },
            "calibration": self.calibration.as_data(),
        }
        if self.neighbours is not None:
            data["neighbours"] = {"searched": self.neighbours_of, **self.neighbours.as_data()}
        return data


@dataclass(slots=True)
class Retrieval:
    """Search across images and captions.

    Attributes:
        image_to_text: An image finds one of its captions.
        text_to_image: A caption finds its image.
    """

    image_to_text: Recall
    text_to_image: Recall

    def as_data(self) -> dict[str, Any]:
        """Returns the measures as JSON has them."""
        sides = {"image_to_text": self.image_to_text.as_data(), "text_to_image": self.text_to_image.as_data()}
        return {"retrieval": sides}


@dataclass(slots=True)
class Answered:
    """Questions with labels of their own.

    Attributes:
        accuracy: Share of questions whose best label is right.
        calibration: Of the scores.
        groups: By kind, in the order in which the kinds first come; empty if no question has a kind.
        lines: The answers, if they were asked for.
    """

    accuracy: float
    calibration: Calibration
    groups: list[Group]
    lines: list[AnswerLine] = field(default_factory=list)

    def as_data(self) -> dict[str, Any]:
        """Returns the measures as JSON has them."""
        return {
            "questions": {"accuracy": self.accuracy, "by_kind": [group.as_data() for group in self.groups]},
            "calibration": self.calibration.as_data(),
        }


Result: TypeAlias = Classification | Retrieval | Answered
