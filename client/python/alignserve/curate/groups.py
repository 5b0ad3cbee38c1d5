"""Rows with equal content, found on disk: exact, over any number of rows, in bounded memory.

Content is compared by a 128-bit hash (BLAKE2b). Rows are split by it into files that fit into memory one at a
time, so that equal rows are in one file, which is then sorted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Rows: TypeAlias = NDArray[np.uint64]

_HASHED = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u8")])
_PART_ROWS = 1 << 20  # 24 MiB, and twice that while it is sorted
_MAX_PARTS = 512  # open files


class RowGroups:
    """Groups of rows with equal content.

    Args:
        folder: An empty folder for the files.
        row_count: How many rows there are, at most.
        part_rows: How many of them fit into memory.
    """

    def __init__(self, folder: Path, row_count: int, part_rows: int = _PART_ROWS) -> None:
        count = min(_MAX_PARTS, -(-max(row_count, 1) // part_rows))
        folder.mkdir(parents=True, exist_ok=True)
        self._paths = [folder / f"{part:03}" for part in range(count)]
        self._files = [path.open("wb") for path in self._paths]

    def add(self, contents: Iterable[tuple[str, ...]], rows: Iterable[int]) -> None:
        """Adds rows, numbered by their caller."""
        block = np.array([(*_hash(parts), row) for parts, row in zip(contents, rows, strict=True)], _HASHED)
        numbers = block["low"] % np.uint64(len(self._files))
        for number in np.unique(numbers):
            self._files[number].write(block[numbers == number].tobytes())

    def above(self, max_count: int) -> Iterator[Rows]:
        """Yields the rows of groups with more rows than `max_count`, in blocks."""
        for block, _, counts in self._sorted():
            yield block["row"][np.repeat(counts > max_count, counts)]

    def repeated(self, is_in: NDArray[np.uint64]) -> Iterator[Rows]:
        """Yields all but the lowest-numbered row of each group, in blocks; only rows that count form groups.

        Args:
            is_in: (all rows,), by number; a row counts if its value is 0.
        """
        for block, starts, _ in self._sorted(is_in):
            is_later = np.ones(len(block), bool)
            is_later[starts] = False
            yield block["row"][is_later]

    def _sorted(
        self, is_in: NDArray[np.uint64] | None = None
    ) -> Iterator[tuple[NDArray[np.void], NDArray[np.int64], NDArray[np.int64]]]:
        """Yields each file's rows by content and number, where each group starts, and the groups' sizes."""
        for file in self._files:
            file.close()
        for path in self._paths:
            block = np.fromfile(path, _HASHED)
            if is_in is not None:
                block = block[is_in[block["row"]] == 0]
            block = block[np.lexsort((block["row"], block["low"], block["high"]))]
            is_new = np.ones(len(block), bool)
            is_new[1:] = (block["high"][1:] != block["high"][:-1]) | (block["low"][1:] != block["low"][:-1])
            starts = np.flatnonzero(is_new)
            yield block, starts, np.diff(np.append(starts, len(block)))


def _hash(parts: tuple[str, ...]) -> tuple[int, int]:
    """Returns a 128-bit hash of some strings, whose lengths are part of it."""
    found = blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    digest = found.digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
