"""Questions about images: which of these labels is right? A line of JSON for each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alignserve.datasets.records import FailedRow
from alignserve.datasets.row import Row, RowFailure
from alignserve.datasets.source import SourceError
from alignserve.datasets.sources import open_dataset
from alignserve.datasets.sources.files import FileError
from alignserve.datasets.sources.json_lines import names_in
from alignserve.evaluate.caption_set import texts_of
from alignserve.evaluate.class_names import ClassName, Prompts, templates_of
from alignserve.evaluate.inputs import Input
from alignserve.evaluate.sets import Reading, SetOptions

_IMAGE = "image"
_REQUIRED = frozenset({_IMAGE, "labels", "answer"})
_COLUMNS = ("id", "labels", "answer", "kind", "templates")
_SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Question:
    """Which label fits an image.

    Attributes:
        key: Its `id`, or the file and the line.
        image: Number of the image.
        labels: To choose from, at least two, all different.
        right: Number of the right label.
        kind: Of question, for a table by kind; empty for none.
        templates: Around the labels; empty for none.
    """

    key: str
    image: int
    labels: tuple[str, ...]
    right: int
    kind: str = ""
    templates: tuple[str, ...] = ()

    @property
    def answer(self) -> str:
        """Returns the right label."""
        return self.labels[self.right]

    def prompts(self) -> Iterator[tuple[str, ...]]:
        """Yields the texts of each label."""
        for label in self.labels:
            yield tuple(ClassName((label,)).texts(self.templates))


@dataclass(slots=True)
class QuestionSet:
    """Questions, several of which may be about one image.

    Attributes:
        questions: That can be asked.
        images: That they are about, with a key each.
        failures: Lines that are not questions.
        reading: What could not be read.
    """

    questions: list[Question] = field(default_factory=list)
    images: list[tuple[str, Path]] = field(default_factory=list)
    failures: list[FailedRow] = field(default_factory=list)
    reading: Reading = field(default_factory=Reading)

    @property
    def total(self) -> int:
        """Returns the number of images."""
        return len(self.images)

    def inputs(self) -> Iterator[Input]:
        """Yields each image once, with its number in `about`."""
        for number, (key, path) in enumerate(self.images):
            yield Input(key, path, about=number)
        for failed in self.failures:
            yield Input(failed.key, failure=RowFailure(failed.reason, failed.message))


def is_question_file(source: str, max_line_bytes: int) -> bool:
    """Returns whether a source is JSON Lines whose objects have what a question has."""
    path = Path(source)
    if path.suffix.lower() not in _SUFFIXES or not path.is_file():
        return False
    try:
        return set(names_in(path, max_line_bytes)) >= _REQUIRED
    except FileError:
        return False


def open_questions(source: str, options: SetOptions) -> QuestionSet:
    """Reads questions.

    Args:
        source: JSON Lines; relative paths of images start at its folder, or at `image_root` of the options.
        options: How to read it; its templates are used where a question has none of its own.

    Raises:
        SourceError: It cannot be read, or has none of the fields of questions.
    """
    reading_options = replace(
        options.source, image_column=_IMAGE, text_column="", columns=_COLUMNS, reads_images=False
    )
    dataset = open_dataset([source], reading_options)
    found = QuestionSet(reading=Reading.of(dataset))
    prompts = options.prompts or Prompts()
    if prompts.by_class is not None:
        raise ValueError("questions have templates, not texts for each class; write a list of templates")
    numbers: dict[str, int] = {}
    for row in found.reading.rows(dataset):
        _add(found, row, prompts, numbers)
    if not found.questions and not found.failures:
        raise SourceError(f"{source} has no questions")
    return found


def _add(found: QuestionSet, row: Row, prompts: Prompts, numbers: dict[str, int]) -> None:
    key = row.columns.get("id") or row.key
    if row.failure is not None:
        found.failures.append(FailedRow.of(row.key, row.failure))
        return
    try:
        labels, right = _labels(row.columns)
        templates = _templates(row.columns.get("templates"), prompts)
    except ValueError as error:
        found.failures.append(FailedRow(row.key, "QUESTION_INVALID", str(error)))
        return
    if not isinstance(row.image, Path):
        found.failures.append(FailedRow(row.key, "IMAGE_MISSING", "the question has no path of an image"))
        return
    path = str(row.image)
    if path not in numbers:
        numbers[path] = len(numbers)
        found.images.append((row.key, row.image))
    kind = row.columns.get("kind") or ""
    found.questions.append(Question(str(key), numbers[path], labels, right, str(kind), templates))


def _labels(columns: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    labels = texts_of(columns.get("labels"))
    answer = columns.get("answer")
    if len(labels) < 2:
        raise ValueError(f"{len(labels)} labels; a question needs two or more")
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ValueError(f"the label {twice!r} comes twice")
    if answer not in labels:
        raise ValueError(f"the answer {answer!r} is not one of the labels: {json.dumps(labels)}")
    return tuple(labels), labels.index(answer)


def _templates(value: Any, prompts: Prompts) -> tuple[str, ...]:
    return prompts.templates if value is None else templates_of(texts_of(value), "its templates")
