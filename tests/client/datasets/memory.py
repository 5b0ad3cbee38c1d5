"""Datasets in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from alignserve.datasets.row import Row
from alignserve.datasets.source import BrokenSourceError, Cursor, Dataset


@dataclass
class MemoryFile:
    """A source file whose cursors count rows; `breaks_at` is the row at which it breaks off."""

    name: str
    content: Sequence[Row]
    breaks_at: int | None = None

    def digest(self) -> str:
        return hashlib.sha256(repr(self.content).encode()).hexdigest()

    def rows(self, start: Cursor = 0) -> Iterator[tuple[Row, Cursor]]:
        for position in range(start, len(self.content)):
            if position == self.breaks_at:
                raise BrokenSourceError(f"{self.name} breaks off at row {position}")
            yield self.content[position], position + 1


def text_rows(count: int, prefix: str = "row") -> list[Row]:
    """Returns rows with a text and a column each."""
    return [
        Row(f"{prefix}-{number}", text=f"{prefix} text {number}", columns={"number": number})
        for number in range(count)
    ]


def text_dataset(*counts: int) -> Dataset:
    """Returns a dataset of files with this many rows of text."""
    files = [
        MemoryFile(f"file-{number}", text_rows(count, f"f{number}")) for number, count in enumerate(counts)
    ]
    return Dataset(files, pa.schema([("number", pa.int64())]), has_images=False)
