"""What all sets have in common: how they are read, and what of them cannot be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from alignserve.datasets.row import Row
from alignserve.datasets.source import BrokenSourceError, Dataset
from alignserve.datasets.sources import SourceOptions
from alignserve.evaluate.class_names import ClassNames, Prompts

DEFAULT_SPLIT = "test"


class Task(StrEnum):
    """What a set asks of the model."""

    CLASSIFICATION = "classification"
    RETRIEVAL = "retrieval"
    QUESTIONS = "questions"


@dataclass(frozen=True, slots=True)
class SetOptions:
    """How a set is read.

    Attributes:
        source: How its files are read.
        names: Of its classes; `None` takes them from the data.
        prompts: Around the names; `None` takes those that come with the data, or none.
        class_column: With the class of each row; `None` is `cls` in tars, and the folder of image files.
        captions_column: With a list of captions in each row; `None` looks for `captions`.
        captions_per_image: More are left out; `None` takes all.
        split: Of the sets that have several.
    """

    source: SourceOptions = field(default_factory=SourceOptions)
    names: ClassNames | None = None
    prompts: Prompts | None = None
    class_column: str | None = None
    captions_column: str | None = None
    captions_per_image: int | None = None
    split: str = DEFAULT_SPLIT


@dataclass(slots=True)
class Reading:
    """What of a set could not be read.

    Attributes:
        problems: Files and folders, and why; an evaluation with one is not a success.
        skipped: Number of files that are not rows, by suffix or kind.
    """

    problems: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, dataset: Dataset, ignored: Mapping[str, int] | None = None) -> Reading:
        """Returns what was found while a dataset was opened, without files that are known to be there."""
        return cls(list(dataset.problems), dataset.skipped - Counter(ignored or {}))

    def rows(self, dataset: Dataset) -> Iterator[Row]:
        """Yields all rows; a file that breaks off is a problem, and the others go on."""
        for file in dataset.files:
            try:
                for row, _ in file.rows():
                    yield row
            except BrokenSourceError as error:
                self.problems.append(str(error))
