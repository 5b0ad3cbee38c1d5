"""Evaluates a model on a set: embeds everything once, and measures the vectors."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignserve.evaluate.calibration import DEFAULT_BINS, SURE, Calibration
from alignserve.evaluate.caption_set import CaptionSet, Picture
from alignserve.evaluate.class_set import ClassSet
from alignserve.evaluate.embedding import Embedder, Vector
from alignserve.evaluate.neighbours import neighbour_labels, ranks_of_labels
from alignserve.evaluate.question_set import Question, QuestionSet
from alignserve.evaluate.retrieval import TOP, Recall, ranks
from alignserve.evaluate.scoring import Answers, answer
from alignserve.evaluate.vectors import Vectors

_TOP_5 = 5


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


def evaluate_classes(
    set_: ClassSet,
    embedder: Embedder,
    *,
    gallery: ClassSet | None = None,
    gallery_name: str = "",
    bins: int = DEFAULT_BINS,
    keeps_lines: bool = False,
) -> Classification:
    """Classifies images, and finds the nearest images of each.

    Args:
        set_: The images.
        embedder: Of the server.
        gallery: Images among which the nearest are looked for; by default the other images of the set.
        gallery_name: For reports.
        bins: Of the calibration.
        keeps_lines: Keep each answer.

    Raises:
        ValueError: No image could be embedded, or a class has no vector.
    """
    images = _Labelled.of(set_, embedder, keeps_keys=keeps_lines)
    others = None if gallery is None else _Labelled.of(gallery, embedder)
    labels = _class_vectors(set_, embedder)
    temperature = embedder.info.temperature
    answers = Answers.joined(
        [
            answer(block, labels, images.labels[start : start + len(block)], temperature)
            for start, block in images.vectors.blocks()
        ]
    )
    neighbour_ranks = None
    if others is not None:
        by_number = _renumbered(others.labels, gallery, set_)
        found = neighbour_labels(images.vectors, by_number, TOP[-1], others.vectors)
        neighbour_ranks = ranks_of_labels(found, images.labels)
    elif np.bincount(images.labels).max() > 1:
        found = neighbour_labels(images.vectors, images.labels, TOP[-1])
        neighbour_ranks = ranks_of_labels(found, images.labels)
    names = [each.name for each in set_.classes]
    groups = _by_class(answers, images.labels, names, neighbour_ranks)
    candidates = len(images.vectors) - 1 if others is None else len(others.vectors)
    return Classification(
        classes=len(names),
        top_1=float(answers.is_right.mean()),
        top_5=float((answers.rank < _TOP_5).mean()) if len(names) > _TOP_5 else None,
        mean_per_class=float(np.mean([group.accuracy for group in groups])),
        calibration=Calibration.of(answers, bins),
        groups=groups,
        neighbours=None if neighbour_ranks is None else Recall.of(neighbour_ranks, candidates),
        neighbours_of=gallery_name or "rest of the set",
        lines=_class_lines(answers, images, names) if keeps_lines else [],
    )


def evaluate_captions(set_: CaptionSet, embedder: Embedder) -> Retrieval:
    """Searches images by captions, and captions by images.

    Raises:
        ValueError: No image with a caption could be embedded.
    """
    images, captions = Vectors(embedder.info.embedding_dimension), Vectors(embedder.info.embedding_dimension)
    row_of: dict[int, int] = {}  # by the number of an image that was embedded
    image_of: list[int] = []
    for one, vector in embedder.embed(set_.inputs()):
        if isinstance(one.about, Picture):
            row_of[one.about.number] = len(images)
            images.append(vector)
        elif one.about.image in row_of:
            image_of.append(row_of[one.about.image])
            captions.append(vector)
        else:
            embedder.account.left_out["captions of images that failed"] += 1
    if not image_of:
        raise ValueError("no image with a caption could be embedded")
    found = ranks(images, captions, np.array(image_of))
    return Retrieval(Recall.of(found.of_captions, len(captions)), Recall.of(found.of_images, len(images)))


def evaluate_questions(
    set_: QuestionSet, embedder: Embedder, *, bins: int = DEFAULT_BINS, keeps_lines: bool = False
) -> Answered:
    """Answers questions.

    Args:
        set_: The questions.
        embedder: Of the server.
        bins: Of the calibration.
        keeps_lines: Keep each answer.

    Raises:
        ValueError: No question could be answered.
    """
    for question in set_.questions:
        asked = [question.labels, question.right, question.kind, question.templates]
        embedder.note(question.key, repr(asked).encode(errors="surrogateescape"))
    images = {one.about: vector for one, vector in embedder.embed(set_.inputs())}
    prompts = list(dict.fromkeys(texts for question in set_.questions for texts in question.prompts()))
    labels = dict(zip(prompts, embedder.embed_labels(prompts), strict=True))
    asked_questions, parts = [], []
    for question, image, of_labels in _answerable(set_.questions, images, labels, embedder):
        right = np.array([question.right])
        parts.append(answer(image[None], np.stack(of_labels), right, embedder.info.temperature))
        asked_questions.append(question)
    if not parts:
        raise ValueError("no question could be answered; the failures say why")
    answers = Answers.joined(parts)
    return Answered(
        accuracy=float(answers.is_right.mean()),
        calibration=Calibration.of(answers, bins),
        groups=_by_kind(answers, asked_questions),
        lines=_question_lines(answers, asked_questions) if keeps_lines else [],
    )


@dataclass(slots=True)
class _Labelled:
    """Vectors of images with the number of their class, and their keys if they are kept."""

    vectors: Vectors
    labels: NDArray[np.int64]
    keys: list[str]

    @classmethod
    def of(cls, set_: ClassSet, embedder: Embedder, *, keeps_keys: bool = False) -> _Labelled:
        vectors, labels, keys = Vectors(embedder.info.embedding_dimension), [], []
        for one, vector in embedder.embed(set_.inputs()):
            vectors.append(vector)
            labels.append(one.about)
            if keeps_keys:
                keys.append(one.key)
        if not labels:
            raise ValueError("no image could be embedded; the failures say why")
        return cls(vectors, np.array(labels, np.int64), keys)


def _class_vectors(set_: ClassSet, embedder: Embedder) -> NDArray[np.float32]:
    vectors = embedder.embed_labels(set_.labels())
    missing = [each.name for each, vector in zip(set_.classes, vectors, strict=True) if vector is None]
    if missing:
        shown = ", ".join(missing[:5])
        raise ValueError(f"the server refuses the names of {len(missing)} classes, such as {shown}")
    return np.stack([vector for vector in vectors if vector is not None])


def _renumbered(labels: NDArray[np.int64], gallery: ClassSet | None, set_: ClassSet) -> NDArray[np.int64]:
    """Returns the labels of a gallery by the numbers of the set; -1 for classes that the set lacks."""
    numbers = {each.names: number for number, each in enumerate(set_.classes)}
    assert gallery is not None  # noqa: S101 — it has labels
    table = np.array([numbers.get(each.names, -1) for each in gallery.classes], np.int64)
    return table[labels]


def _by_class(
    answers: Answers,
    labels: NDArray[np.int64],
    names: Sequence[str],
    neighbour_ranks: NDArray[np.int64] | None,
) -> list[Group]:
    groups = []
    for number in np.unique(labels).tolist():
        chosen = labels == number
        found = [names[each] for each in answers.predicted[chosen].tolist()]
        group = _group(names[number], answers.pick(chosen), found)
        if neighbour_ranks is not None:
            right = int((neighbour_ranks[chosen] == 0).sum())
            group = Group(**{**asdict(group), "neighbour_right": right})
        groups.append(group)
    return groups


def _by_kind(answers: Answers, questions: Sequence[Question]) -> list[Group]:
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for row, question in enumerate(questions):
        rows[question.kind].append(row)
    if set(rows) == {""}:
        return []
    groups = []
    for kind, numbers in rows.items():
        chosen = np.isin(np.arange(len(questions)), numbers)
        found = [questions[row].labels[answers.predicted[row]] for row in numbers]
        groups.append(_group(kind or "without kind", answers.pick(chosen), found))
    return groups


def _group(name: str, answers: Answers, predicted: Sequence[str]) -> Group:
    wrong = Counter(each for each, is_right in zip(predicted, answers.is_right, strict=True) if not is_right)
    is_sure_and_wrong = (answers.score > SURE) & ~answers.is_right
    return Group(
        name=name,
        count=len(answers),
        right=int(answers.is_right.sum()),
        mean_score=float(answers.score.mean()),
        mistaken_for=wrong.most_common(1)[0][0] if wrong else "",
        sure_and_wrong=int(is_sure_and_wrong.sum()),
    )


def _answerable(
    questions: Sequence[Question],
    images: dict[int, Vector],
    labels: dict[tuple[str, ...], Vector | None],
    embedder: Embedder,
) -> Iterator[tuple[Question, Vector, list[Vector]]]:
    """Yields the questions of which everything was embedded, and counts the others."""
    for question in questions:
        vectors = [vector for texts in question.prompts() if (vector := labels[texts]) is not None]
        if question.image not in images:
            embedder.account.left_out["questions on images that failed"] += 1
        elif len(vectors) < len(question.labels):
            embedder.account.left_out["questions with labels that failed"] += 1
        else:
            yield question, images[question.image], vectors


def _class_lines(answers: Answers, images: _Labelled, names: Sequence[str]) -> list[AnswerLine]:
    columns = (images.keys, images.labels.tolist(), answers.predicted.tolist(), answers.score.tolist())
    return [
        AnswerLine(key, names[label], names[predicted], score, predicted == label)
        for key, label, predicted, score in zip(*columns, strict=True)
    ]


def _question_lines(answers: Answers, questions: Sequence[Question]) -> list[AnswerLine]:
    columns = (questions, answers.predicted.tolist(), answers.score.tolist())
    return [
        AnswerLine(each.key, each.answer, each.labels[predicted], score, predicted == each.right, each.kind)
        for each, predicted, score in zip(*columns, strict=True)
    ]
