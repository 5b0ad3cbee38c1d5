"""Opens sources in tests, and reads all of their rows."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alignserve.datasets.row import Row
from alignserve.datasets.source import BrokenSourceError, Cursor, Dataset, SourceFile
from alignserve.datasets.sources import SourceOptions, open_dataset


def opened(*sources: str | Path, **options: Any) -> Dataset:
    """Returns the dataset of some sources."""
    return open_dataset(sources, SourceOptions(**options))


def rows(dataset: Dataset) -> list[Row]:
    """Returns all rows of a dataset."""
    return [row for file in dataset.files for row, _ in file.rows()]


def read(*sources: str | Path, **options: Any) -> list[Row]:
    """Returns all rows of some sources."""
    return rows(opened(*sources, **options))


def texts(found: Iterable[Row]) -> list[str | None]:
    return [row.text for row in found]


def reasons(found: Iterable[Row]) -> list[str | None]:
    """Returns why each row failed, or `None`."""
    return [row.failure.reason if row.failure else None for row in found]


def whole_part(file: SourceFile, start: Cursor = 0) -> tuple[list[tuple[Row, Cursor]], str | None]:
    """Returns the rows of a file with their cursors, and how it breaks off."""
    found: list[tuple[Row, Cursor]] = []
    try:
        found += file.rows(start)
    except BrokenSourceError as error:
        return found, str(error)
    return found, None


def broken_rows(file: SourceFile) -> tuple[list[Row], str]:
    """Returns the rows before a file breaks off, and how it does."""
    found: list[Row] = []
    try:
        for row, _ in file.rows():
            found.append(row)
    except BrokenSourceError as error:
        return found, str(error)
    raise AssertionError("the file is whole")


def tar_of(members: Iterable[tuple[str, bytes] | tarfile.TarInfo], **options: Any) -> bytes:
    """Returns a tar of members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def cut_tar(content: bytes) -> bytes:
    """Returns a tar without the mark of its end."""
    return content[: len(content.rstrip(b"\0")) // 512 * 512 + 512]
