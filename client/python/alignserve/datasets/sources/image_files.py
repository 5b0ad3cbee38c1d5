"""Reads image files of folders, in blocks, with the texts and metadata next to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from alignserve.datasets.row import Row
from alignserve.datasets.source import Cursor
from alignserve.datasets.sources.files import FileError, is_there, read_file
from alignserve.datasets.sources.json_lines import kept_from, parsed
from alignserve.datasets.sources.keys import key_of_name
from alignserve.datasets.sources.lines import BOM
from alignserve.datasets.sources.rows import IMAGE, TEXT, RowBuilder, RowError

METADATA_SUFFIX = ".json"
"""Of the file next to an image that has its columns, as img2dataset writes it."""

SEPARATOR = "\0"
"""Between paths; the one character that no path has."""


@dataclass(frozen=True, slots=True)
class ImageBlock:
    """Some image files of a folder, one after the other.

    A row's key is the file's path below the source, and a cursor is the number of files before it. A file
    that cannot be read is a failed row; it is named by the folder, so it counts.

    Attributes:
        name: The first and the last path below the source.
        base: The folder that keys start from.
        paths: Of the files below it, joined by `SEPARATOR`: 10,000 of them need far less memory than as
            objects.
        builder: Makes the rows, of the columns `IMAGE` and `TEXT`.
        text_suffix: Of the file next to an image that has its text and otherwise its name; an image need not
            have one.
        max_metadata_bytes: A larger file of kept columns fails the row. Its suffix is `.json`, as img2dataset
            writes it.
    """

    name: str
    base: str
    paths: str
    builder: RowBuilder
    text_suffix: str
    max_metadata_bytes: int

    def digest(self) -> str:
        digest = blake2b(digest_size=16)
        for name, path in self._files():
            digest.update(os.fsencode(name + SEPARATOR))
            for file in (path, *self._next_to(path)):
                digest.update(_state_of(file))
        return digest.hexdigest()

    def rows(self, start: Cursor = 0) -> Iterator[tuple[Row, Cursor]]:
        """Yields the rows, see `SourceFile`."""
        for number, (name, path) in enumerate(self._files()[start:], start=start + 1):
            yield self._row(key_of_name(name), path), number

    def _row(self, key: str, path: str) -> Row:
        stem = os.path.splitext(path)[0]  # noqa: PTH122 — costs a tenth of a Path, once per image
        builder = self.builder
        values: dict[str, object] = {IMAGE: path}
        metadata: dict[str, object] = {}
        try:
            if builder.text is not None:
                values[TEXT] = _next_to(stem + self.text_suffix, builder.limits.text_bytes, "TEXT")
            if builder.kept:
                content = _next_to(stem + METADATA_SUFFIX, self.max_metadata_bytes, "COLUMN")
                metadata = parsed(content or b"{}\n")
        except RowError as error:
            return Row(key, failure=error.failure)
        return builder.build(key, values, kept_from(metadata, builder.kept))

    def _next_to(self, path: str) -> list[str]:
        """Returns the files of text and columns that are read with an image; they need not exist."""
        stem = os.path.splitext(path)[0]  # noqa: PTH122
        text = [stem + self.text_suffix] if self.builder.text is not None else []
        return [*text, stem + METADATA_SUFFIX] if self.builder.kept else text

    def _files(self) -> list[tuple[str, str]]:
        names = self.paths.split(SEPARATOR)
        return [(name, os.path.join(self.base, name)) for name in names]  # noqa: PTH118 — a `str`, once per image


def _state_of(path: str) -> bytes:
    try:
        status = os.stat(path)  # noqa: PTH116 — a `str` costs less than a Path, once per image
    except OSError:
        return b"missing"
    return f"{status.st_size} {status.st_mtime_ns}".encode()


def block_name(paths: str) -> str:
    """Returns the name of the block of these paths."""
    first, _, others = paths.partition(SEPARATOR)
    last = others.rpartition(SEPARATOR)[2]
    return f"{key_of_name(first)} … {key_of_name(last)}" if last else key_of_name(first)


def _next_to(path: str, max_bytes: int, part: str) -> bytes | None:
    """Returns the content of a file next to an image, without a byte order mark, or `None` without one."""
    try:
        return read_file(path, max_bytes).removeprefix(BOM) if is_there(path) else None
    except OSError as error:
        raise RowError(f"{part}_UNREADABLE", f"{Path(path).name}: {error.strerror}") from error
    except FileError as error:
        raise RowError(f"{part}_{error.reason}", f"{Path(path).name}: {error.message}") from error
