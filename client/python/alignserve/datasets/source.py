"""What a job needs of the data that it reads: files that are read from the front, row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from alignserve.datasets.row import Row

Cursor = int
"""A position in a source file, behind a row; 0 is its beginning. What it counts is the file's own affair."""


class SourceError(Exception):
    """Sources cannot be used as they were given; it is raised before any row is read."""


class BrokenSourceError(Exception):
    """A source file ends early or cannot be read on; the rows that were read are whole.

    Its message names the file and the position.
    """


class SourceFile(Protocol):
    """A file of a dataset, or a block of a folder's files. It can be pickled."""

    @property
    def name(self) -> str:
        """Unique in the dataset: the path below the source that was given, for people and for keys."""

    def digest(self) -> str:
        """Returns a digest that changes if the file does; reading a large file in full is not needed."""

    def rows(self, start: Cursor = 0) -> Iterator[tuple[Row, Cursor]]:
        """Yields the rows from a position on, each with the position behind it.

        A row that cannot be used is yielded with its failure. The same file yields the same rows and keys,
        wherever it starts.

        Raises:
            BrokenSourceError: After the last whole row.
        """


@dataclass(frozen=True, slots=True)
class Dataset:
    """The rows of some sources, file by file.

    Attributes:
        files: In the order of the rows.
        schema: Of the columns that are kept, the same for all files.
        skipped: Number of files that are not rows, by suffix or kind, such as `.txt` or `named pipe`.
        problems: Whatever could not be read while the sources were opened, such as a folder without
            permission; a run over this dataset is not a success.
        has_images: Whether rows can have images.
        has_texts: Whether rows can have texts.
        has_image_files: Whether images can be files of their own, which have paths.
    """

    files: Sequence[SourceFile]
    schema: pa.Schema
    skipped: Counter[str] = field(default_factory=Counter)
    problems: Sequence[str] = ()
    has_images: bool = True
    has_texts: bool = True
    has_image_files: bool = False
