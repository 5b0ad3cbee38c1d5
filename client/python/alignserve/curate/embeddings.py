"""The embeddings of rows, read next to the rows: both come in the order of the source."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

COLUMN = "image_embedding"

_BATCH_ROWS = 4096
_TAIL_BYTES = 1 << 16  # of a Parquet file: where its columns are, and some of the last vectors

_Batch: TypeAlias = tuple[list[str], NDArray[np.float32], NDArray[np.bool_]]


class RowEmbeddings:
    """Finds the embedding of each row, and copies it to a file, L2-normalized.

    Args:
        folder: Output of `alignserve embed-dataset` from the same source, in Parquet.
        scratch: An empty folder for files of eight bytes for each row and four for each number.

    Raises:
        ValueError: The folder has no such files.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        check_embeddings(folder)
        scratch.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._batches = _batches(folder)
        self._batch = next(self._batches, None)
        self._place = 0
        self._count = self._dimension = 0
        self._vectors, self._rows = scratch / "vectors", scratch / "rows"

    def add(self, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> int:
        """Takes the next rows with their numbers, and returns how many of them have no usable embedding.

        Failed rows are passed over, whether or not they have one.

        Raises:
            ValueError: The files are damaged or do not belong together.
        """
        missing = 0
        with self._vectors.open("ab") as vectors, self._rows.open("ab") as numbers:
            for number, row in rows:
                vector = self._vector_of(row["key"])
                if row["failure_reason"] is not None:
                    continue
                if vector is None:
                    missing += 1
                    continue
                vectors.write(vector.tobytes())
                numbers.write(number.to_bytes(8, "little"))
                self._count += 1
        return missing

    def finish(self) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
        """Returns the numbers of the rows that have an embedding, and these: (rows,), (rows, dim).

        Raises:
            ValueError: There are embeddings of other rows.
        """
        if (key := self._next_key()) is not None:
            raise ValueError(
                f"{self._folder} has an embedding of {key!r}, which is not the next row of this source; "
                "embed the same source, with its files in the same order"
            )
        if not self._count:
            return np.empty(0, np.uint64), np.empty((0, 1), np.float32)
        return (
            np.memmap(self._rows, np.uint64, "r"),
            np.memmap(self._vectors, np.float32, "r", shape=(self._count, self._dimension)),
        )

    def _next_key(self) -> str | None:
        while self._batch is not None and self._place == len(self._batch[0]):
            self._batch, self._place = next(self._batches, None), 0
        return None if self._batch is None else self._batch[0][self._place]

    def _vector_of(self, key: str) -> NDArray[np.float32] | None:
        if self._next_key() != key or self._batch is None:
            return None
        place, self._place = self._place, self._place + 1
        _, vectors, is_usable = self._batch
        if not is_usable[place]:
            return None
        if self._dimension not in (0, vectors.shape[1]):
            raise ValueError(
                f"{self._folder} has vectors of dimension {self._dimension} and of {vectors.shape[1]}"
            )
        self._dimension = vectors.shape[1]
        return np.asarray(vectors[place])


def check_embeddings(folder: Path) -> None:
    """Looks whether a folder has embeddings of images.

    Raises:
        ValueError: It does not.
    """
    what = "give the output of alignserve embed-dataset, in Parquet"
    if not (paths := _paths(folder)):
        raise ValueError(f"{folder} has no part-….parquet; {what}")
    schema = _opened(paths[0]).schema_arrow
    for name in ("key", COLUMN):
        if name not in schema.names:
            raise ValueError(f"{paths[0]} has no column {name}; {what}, of images")
    kind = schema.field(COLUMN).type
    is_list = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind)
    if not (is_list and pa.types.is_floating(kind.value_type)):
        raise ValueError(f"{paths[0]} has {kind} in column {COLUMN}, not lists of floats; {what}")


def digest(folder: Path) -> str:
    """Returns a digest of the names, sizes and last bytes of the files, which changes with their content."""
    found = blake2b(digest_size=8)
    for path in _paths(folder):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _TAIL_BYTES, 0))
            found.update(f"{path.name}\n{size}\n".encode() + file.read())
    return found.hexdigest()


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: {error}") from None


def _batches(folder: Path) -> Iterator[_Batch]:
    for path in _paths(folder):
        with _opened(path) as file:
            try:
                for batch in file.iter_batches(_BATCH_ROWS, columns=["key", COLUMN]):
                    yield batch.column("key").to_pylist(), *_matrix(batch.column(COLUMN), path)
            except (pa.ArrowException, KeyError) as error:
                raise ValueError(f"{path}: {error}") from None


def _matrix(column: pa.Array, path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Returns vectors of length 1, and which can be used: (rows, dim), (rows,). One that is null, or has NaN,
    infinity or no direction, cannot.
    """
    is_known = column.is_valid().to_numpy(zero_copy_only=False)
    found = column.drop_null()
    lengths = (
        set(found.value_lengths().to_pylist()) if not pa.types.is_fixed_size_list(column.type) else set()
    )
    if len(lengths) > 1:
        raise ValueError(f"{path} has vectors of different dimensions")
    numbers = found.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    dimension = numbers.size // len(found) if len(found) else 1
    vectors = np.zeros((len(column), dimension))
    vectors[is_known] = numbers.reshape(len(found), dimension)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(vectors, axis=1)
        is_usable = np.isfinite(norms) & (norms > 0)
        vectors[is_usable] /= norms[is_usable, None]
    return vectors.astype(np.float32), is_usable
