"""Lists of perceptual hashes of pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

__all__ = ["HashListError", "PhashSet"]

_HASH = re.compile(r"[0-9a-fA-F]{16}")
_HASH_COLUMNS = ("image_phash", "phash", "hash")
_BATCH_ROWS = 1 << 16


class HashListError(Exception):
    """A list of hashes cannot be read; the message names the file, and the line if it has lines."""


class PhashSet:
    """A set of 64-bit perceptual hashes, in 8 bytes each.

    Hashes are compared as `pictures.Picture.phash` has them. A list that another program made is only of use
    if that program's hash is the same: `imagehash.phash` is, phash.org's library is not.
    """

    def __init__(self, hashes: NDArray[np.uint64]) -> None:
        """Makes a set of hashes in any order: (hashes,)."""
        self._hashes = np.unique(hashes)

    @classmethod
    def load(cls, *paths: Path) -> PhashSet:
        """Reads lists: text with one hash of 16 hexadecimal digits a line, or Parquet.

        In text, blank lines and lines that start with `#` do not count. In Parquet, the hashes are the column
        `image_phash`, `phash` or `hash`, or the only column; nulls do not count.

        Raises:
            HashListError: A list cannot be read, or has something else than hashes of 64 bits.
        """
        parts = [part for path in paths for part in (_parquet if _is_parquet(path) else _lines)(path)]
        return cls(np.concatenate([np.empty(0, np.uint64), *parts]))

    def __len__(self) -> int:
        """Returns the number of different hashes."""
        return len(self._hashes)

    def __contains__(self, phash: object) -> bool:
        """Returns whether a hash of 16 hexadecimal digits is in the set; `None` is not."""
        if not isinstance(phash, str) or not _HASH.fullmatch(phash):
            return False
        value = np.uint64(int(phash, 16))
        place = int(np.searchsorted(self._hashes, value))
        return place < len(self._hashes) and bool(self._hashes[place] == value)

    def __iter__(self) -> Iterator[str]:
        """Yields the hashes in ascending order."""
        return (f"{int(value):016x}" for value in self._hashes)


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError as error:
        raise HashListError(f"{path}: {error.strerror}") from None


def _lines(path: Path) -> Iterator[NDArray[np.uint64]]:
    values: list[int] = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                text = line.strip()
                if not text or text.startswith("#"):
                    continue
                values.append(_value(text, f"{path}:{number}"))
                if len(values) == _BATCH_ROWS:
                    yield np.array(values, np.uint64)
                    values.clear()
    except UnicodeDecodeError:
        raise HashListError(f"{path}: is neither text nor Parquet") from None
    yield np.array(values, np.uint64)


def _parquet(path: Path) -> Iterator[NDArray[np.uint64]]:
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        column = next(
            (name for name in _HASH_COLUMNS if name in names), names[0] if len(names) == 1 else None
        )
        if column is None:
            raise HashListError(
                f"{path}: has no column {' or '.join(_HASH_COLUMNS)}, and more than one column"
            )
        row = 0
        for batch in file.iter_batches(_BATCH_ROWS, columns=[column]):
            texts = batch.column(0).to_pylist()
            places = (f"{path}: row {number}" for number in range(row, row + len(texts)))
            yield np.array(
                [_value(text, place) for text, place in zip(texts, places, strict=True) if text is not None],
                np.uint64,
            )
            row += len(texts)
    except pa.ArrowException as error:
        raise HashListError(f"{path}: {error}") from None


def _value(text: object, place: str) -> int:
    if not isinstance(text, str) or not _HASH.fullmatch(text):
        raise HashListError(f"{place}: {text!r} is not a hash of 16 hexadecimal digits (64 bits)")
    return int(text, 16)
