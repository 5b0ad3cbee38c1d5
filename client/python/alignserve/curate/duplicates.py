"""Pictures that are in a list of perceptual hashes, and rows whose pictures look alike by their embeddings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

__all__ = ["HashListError", "NearDuplicates", "PhashSet", "load_embeddings"]

_HASH = re.compile(r"[0-9a-fA-F]{16}")
_HASH_COLUMNS = ("image_phash", "phash", "hash")
_BATCH_ROWS = 1 << 16
_BLOCK_ROWS = 2048


class HashListError(Exception):
    """A list of hashes cannot be read; the message names the file, and the line if it has lines."""


class PhashSet:
    """A set of 64-bit perceptual hashes, in 8 bytes each.

    Hashes are compared as `pictures.Picture.phash` has them. A list that another program made is only of use if that
    program's hash is the same: `imagehash.phash` is, phash.org's library is not.
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


class NearDuplicates:
    """Rows whose vector is close to that of an earlier row that stays.

    Rows are decided in order: a row goes if its cosine with an earlier row that stayed is at least the bound. So each
    row that goes resembles one that stays, and no two rows that stay resemble each other. The search is exact: it
    compares every row with all earlier ones that stay, and its time grows with the square of their number. The result
    is the same in every run, except that on another processor a cosine may round to the other side of the bound.
    """

    def __init__(self, vectors: NDArray[np.float32], min_cosine: float, block_rows: int = _BLOCK_ROWS) -> None:
        """Looks at no vector yet.

        Args:
            vectors: (rows, dim), L2-normalized, in the order of the rows; may be a memory map.
            min_cosine: Above 0, at most 1.
            block_rows: How many rows are compared with how many at a time.

        Raises:
            ValueError: The bound is not a cosine that makes sense.
        """
        if not 0 < min_cosine <= 1:
            raise ValueError(f"a cosine of {min_cosine} is not above 0 and at most 1")
        self._vectors = vectors
        self._min_cosine = np.float32(min_cosine)
        self._block_rows = block_rows

    def blocks(
        self, is_in: NDArray[np.bool_] | None = None, decided: NDArray[np.int64] | None = None
    ) -> Iterator[NDArray[np.int64]]:
        """Yields, block by block, the earlier row that each row resembles, or -1 for a row that stays: (block,).

        Args:
            is_in: (rows,), whether a row counts; other rows resemble no row, and no row resembles them.
            decided: (some rows,), what was yielded before: the first rows need not be compared again.
        """
        count = len(self._vectors)
        is_in = np.ones(count, bool) if is_in is None else is_in
        found = np.full(count, -1, np.int64)
        start = 0
        if decided is not None:
            start = len(decided)
            found[:start] = decided
        while start < count:
            end = min(start + self._block_rows, count)
            self._decide(found, is_in, start, end)
            yield found[start:end].copy()
            start = end

    def _decide(
        self, found: NDArray[np.int64], is_in: NDArray[np.bool_], start: int, end: int
    ) -> None:
        rows = start + np.flatnonzero(is_in[start:end])
        block = self._vectors[rows]
        open_ = np.arange(len(rows))  # rows of the block that resemble no earlier row so far
        for first in range(0, start, self._block_rows):
            others = first + np.flatnonzero(
                (found[first : first + self._block_rows] < 0) & is_in[first : first + self._block_rows]
            )
            others = others[others < start]
            is_near = block[open_] @ self._vectors[others].T >= self._min_cosine
            hits = is_near.any(axis=1)
            found[rows[open_[hits]]] = others[is_near[hits].argmax(axis=1)]
            open_ = open_[~hits]
        is_near = block[open_] @ block[open_].T >= self._min_cosine
        stays = np.ones(len(open_), bool)
        for place in range(1, len(open_)):
            near = np.flatnonzero(is_near[place, :place] & stays[:place])
            if near.size:
                stays[place] = False
                found[rows[open_[place]]] = rows[open_[near[0]]]


def load_embeddings(
    files: Iterable[Path], column: str, scratch: Path
) -> tuple[list[str], NDArray[np.float32]]:
    """Copies the vectors of an `embed-dataset` output to a file that is mapped into memory.

    Args:
        files: Its Parquet files, in the order of their names.
        column: Of vectors, such as `image_embedding`.
        scratch: A file to write, of four bytes for each number.

    Returns:
        The keys, and the vectors: (rows, dim), L2-normalized.

    Raises:
        ValueError: There are no vectors, or not all have one dimension.
    """
    keys: list[str] = []
    dimension = 0
    with scratch.open("wb") as output:
        for path in files:
            for batch in pq.ParquetFile(path).iter_batches(_BATCH_ROWS, columns=["key", column]):
                vectors = _matrix(batch.column(column), path)
                if vectors.shape[1] != (dimension or vectors.shape[1]):
                    raise ValueError(f"{path} has vectors of dimension {vectors.shape[1]}, others {dimension}")
                dimension = vectors.shape[1]
                keys += batch.column("key").to_pylist()
                output.write(vectors.tobytes())
    if not keys:
        raise ValueError(f"no vectors in column {column}")
    return keys, np.memmap(scratch, np.float32, "r", shape=(len(keys), dimension))


def _matrix(column: pa.Array, path: Path) -> NDArray[np.float32]:
    if column.null_count:
        raise ValueError(f"{path} has rows without a vector")
    flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    vectors: NDArray[np.float32] = flat.reshape(len(column), -1)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


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
        column = next((name for name in _HASH_COLUMNS if name in names), names[0] if len(names) == 1 else None)
        if column is None:
            raise HashListError(f"{path}: has no column {' or '.join(_HASH_COLUMNS)}, and more than one column")
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
