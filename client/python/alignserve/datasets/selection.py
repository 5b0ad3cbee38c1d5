"""Picks rows of a dataset by their keys, such as those that failed in an earlier run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from pathlib import Path

from alignserve.datasets.row import Row
from alignserve.datasets.source import Cursor, Dataset, SourceFile


@dataclass(frozen=True, slots=True)
class Selection:
    """Keys of rows.

    Attributes:
        keys: Of the rows to pick.
        digest: Of the keys, for the manifest.
    """

    keys: Set[str]
    digest: str

    @classmethod
    def read(cls, path: Path) -> Selection:
        """Reads a file of JSON lines that have a `key` each, such as `failures.jsonl`.

        Raises:
            OSError: The file cannot be read.
            ValueError: A line is not an object with a key.
        """
        keys = set()
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    keys.add(_key(line, f"{path}, line {number}"))
        digest = hashlib.sha256("\n".join(sorted(map(json.dumps, keys))).encode()).hexdigest()
        return cls(frozenset(keys), digest)

    def of(self, dataset: Dataset) -> Dataset:
        """Returns the dataset with these rows only; its files keep their names and positions."""
        return replace(dataset, files=[_Selected(file, self.keys) for file in dataset.files])


class _Selected:
    """A source file with some of its rows."""

    def __init__(self, file: SourceFile, keys: Set[str]) -> None:
        self.name = file.name
        self._file = file
        self._keys = keys

    def digest(self) -> str:
        return self._file.digest()

    def rows(self, start: Cursor = 0) -> Iterator[tuple[Row, Cursor]]:
        return ((row, cursor) for row, cursor in self._file.rows(start) if row.key in self._keys)


def _key(line: str, where: str) -> str:
    try:
        key = json.loads(line)["key"]
    except (ValueError, KeyError, TypeError):
        key = None
    if not isinstance(key, str):
        raise ValueError(f"{where}: not an object with a key, as failures.jsonl has them")
    return key
