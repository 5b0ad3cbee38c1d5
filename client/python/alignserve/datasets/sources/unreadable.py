"""A file that could not be opened: it has no rows, and is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alignserve.datasets.row import Row
from alignserve.datasets.source import BrokenSourceError, Cursor
from alignserve.datasets.sources.files import FileError, digest_of

UNREADABLE = "unreadable"
"""The digest of a file of which nothing can be read."""


@dataclass(frozen=True, slots=True)
class UnreadableFile:
    """A table or tar that could not be opened, such as Parquet without its end.

    Attributes:
        name: The file's path below the source.
        path: Of the file.
        message: What is wrong with it.
    """

    name: str
    path: Path
    message: str

    def digest(self) -> str:
        try:
            return digest_of(self.path)
        except FileError:
            return UNREADABLE

    def rows(self, start: Cursor = 0) -> Iterator[tuple[Row, Cursor]]:  # noqa: ARG002 — of `SourceFile`
        """Raises `BrokenSourceError`, wherever reading starts."""
        yield from ()
        raise BrokenSourceError(f"{self.path}: {self.message}")
