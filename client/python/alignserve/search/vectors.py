"""Folders of vectors: Parquet parts of one schema, as `alignserve embed-dataset` writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

COLUMNS = {"image": "image_embedding", "text": "text_embedding"}
"""The columns of vectors, by modality."""

_KEY = "key"
BATCH_ROWS = 4096  # 16 MB for two columns of 512 numbers in float32


class VectorsError(ValueError):
    """A folder of vectors cannot be used. Its message names the folder or the part, and says what to do."""


@dataclass(frozen=True, slots=True)
class VectorFolder:
    """A folder of vectors, of which only footers have been read.

    Attributes:
        path: As given.
        parts: Parquet files, in the order of the rows.
        part_rows: Number of rows of each part.
        schema: Of every part.
        manifest: The content of `manifest.json`; empty if there is none.
    """

    path: Path
    parts: tuple[Path, ...]
    part_rows: tuple[int, ...]
    schema: pa.Schema
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path, column: str | None = None) -> VectorFolder:
        """Opens a folder, or a single Parquet file.

        Args:
            path: Of either.
            column: Of the vectors, if it is not one of `COLUMNS`.

        Raises:
            VectorsError: There are no vectors, parts differ, or a job has not finished writing the folder.
        """
        parts = tuple(sorted(path.glob("*.parquet"))) if path.is_dir() else (path,)
        if not path.exists() or not parts:
            raise VectorsError(f"{path}: no Parquet files; give a folder that alignserve embed-dataset wrote")
        manifest = _manifest(path)
        footers = [_footer(part) for part in parts]
        schema = footers[0].schema.to_arrow_schema()
        for part, footer in zip(parts, footers, strict=True):
            if not _is_alike(footer.schema.to_arrow_schema(), schema):
                raise VectorsError(
                    f"{part}: columns, fingerprint or data type differ from those of {parts[0]}"
                )
        folder = cls(path, parts, tuple(footer.num_rows for footer in footers), schema, manifest)
        if column is not None and column not in schema.names:
            raise VectorsError(f"{path}: no column {column!r}; there are {', '.join(schema.names)}")
        if column is None and not folder.modalities:
            raise VectorsError(f"{path}: no column of vectors; expected {' or '.join(COLUMNS.values())}")
        return folder

    @property
    def rows(self) -> int:
        """Returns the number of rows."""
        return sum(self.part_rows)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Returns the modalities that there are vectors of."""
        return tuple(name for name, column in COLUMNS.items() if column in self.schema.names)

    @property
    def fingerprint(self) -> str:
        """Returns the fingerprint of the model that made the vectors; empty if it was not written."""
        return self._metadata("fingerprint")

    @property
    def model_fingerprint(self) -> str:
        """Returns the fingerprint without the suffix of vectors that compact-vectors has rotated."""
        return self.fingerprint.partition("+")[0]

    @property
    def model(self) -> str:
        """Returns the identifier of that model; empty if it was not written."""
        return self._metadata("model")

    @property
    def dtype(self) -> str:
        """Returns the data type of the vectors; empty if it was not written."""
        return self._metadata("dtype")

    @property
    def mapped_from(self) -> str:
        """Returns the fingerprint of the model that vectors were mapped from; empty if they were not."""
        return self._metadata("mapped_from")

    @property
    def dimension(self) -> int:
        """Returns the number of elements in a vector, or of bytes in a packed one."""
        return int(self.schema.field(COLUMNS[self.modalities[0]]).type.list_size)

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Returns the data type of a vector's elements."""
        kind = self.schema.field(COLUMNS[self.modalities[0]]).type.value_type
        return np.dtype(cast("type[Any]", kind.to_pandas_dtype()))

    @property
    def bytes_per_vector(self) -> int:
        """Returns the size of a vector."""
        return self.dimension * self.numpy_dtype.itemsize

    def require_floats(self) -> None:
        """Checks that the vectors are floats.

        Raises:
            VectorsError: They are quantized.
        """
        for modality in self.modalities:
            kind = self.schema.field(COLUMNS[modality]).type
            if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
                raise VectorsError(
                    f"{self.path}: {COLUMNS[modality]} is {kind}; give the folder with the original vectors, "
                    "in float32 or float16"
                )

    def require_originals(self) -> None:
        """Checks that the vectors are floats as the model made them.

        Raises:
            VectorsError: They are quantized or rotated.
        """
        self.require_floats()
        if self.model_fingerprint != self.fingerprint:
            raise VectorsError(
                f"{self.path} has rotated vectors, fingerprint {self.fingerprint}; give the folder with the "
                "original vectors"
            )

    def batches(
        self, columns: Sequence[str] | None = None, rows: int = BATCH_ROWS
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields the rows in batches, each with the number of its first row."""
        first = 0
        for part in range(len(self.parts)):
            for batch in self.part_batches(part, columns, rows):
                yield first, batch
                first += len(batch)

    def part_batches(
        self, part: int, columns: Sequence[str] | None = None, rows: int = BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Yields the rows of one part in batches.

        Raises:
            VectorsError: The part cannot be read.
        """
        try:
            with pq.ParquetFile(self.parts[part]) as file:
                yield from file.iter_batches(rows, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise VectorsError(f"{self.parts[part]}: {error}") from error

    def take(self, numbers: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """Returns some rows; row groups without one of them are not read.

        Args:
            numbers: Of the rows, ascending.
            columns: Names of the columns to return.
        """
        starts = [0, *accumulate(self.part_rows)]
        found = [
            batch
            for part, (start, end) in enumerate(pairwise(starts))
            if (wanted := numbers[(numbers >= start) & (numbers < end)] - start).size
            for batch in _rows_of_part(self.parts[part], wanted, columns)
        ]
        schema = pa.schema([self.schema.field(name) for name in columns])
        return pa.Table.from_batches(found).cast(schema) if found else schema.empty_table()

    def keys(self, numbers: NDArray[np.int64]) -> list[str]:
        """Returns the keys of some rows, as `take` does; in a folder without keys they are the numbers."""
        if _KEY not in self.schema.names:
            return [str(number) for number in numbers.tolist()]
        return [str(key) for key in self.take(numbers, [_KEY]).column(0).to_pylist()]

    def _metadata(self, name: str) -> str:
        value: bytes = (self.schema.metadata or {}).get(f"alignserve.{name}".encode(), b"")
        return value.decode()


def sample_rows(rows: int, count: int, seed: int) -> NDArray[np.int64]:
    """Returns the numbers of rows drawn at random without repetition, ascending; all if there are no more."""
    if count >= rows:
        return np.arange(rows, dtype=np.int64)
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(rows, count, replace=False, shuffle=False)).astype(np.int64)


def vectors_of(column: pa.Array | pa.ChunkedArray) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Returns which rows of a column have a vector, (rows,), and these vectors, (rows with one, dim).

    Raises:
        VectorsError: A vector has NaN or infinity in it.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # of a column without rows
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    is_there = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), dtype=bool)
    values = array.flatten().to_numpy(zero_copy_only=False)  # without those of rows that are null
    vectors = values.reshape(-1, array.type.list_size)
    is_finite = np.isfinite(vectors).all(axis=1)
    if not is_finite.all():
        row = np.flatnonzero(is_there)[np.flatnonzero(~is_finite)[0]]
        raise VectorsError(
            f"vectors have NaN or infinity in them, such as {array[int(row)].as_py()[:3]}…; leave these rows "
            "out, or embed them again"
        )
    return is_there, vectors


def column_of(is_there: NDArray[np.bool_], vectors: NDArray[Any]) -> pa.Array:
    """Returns a column of vectors, the reverse of `vectors_of`."""
    filled = np.zeros((len(is_there), vectors.shape[1]), vectors.dtype)
    filled[is_there] = vectors
    return pa.FixedSizeListArray.from_arrays(
        pa.array(filled.reshape(-1)), filled.shape[1], mask=pa.array(~is_there)
    )


def normalized(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Returns the vectors in float32 and of length 1; a vector of zeros stays as it is."""
    exact = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(exact, axis=-1, keepdims=True)
    return np.asarray(exact / np.where(lengths > 0, lengths, 1), np.float32)


def _manifest(path: Path) -> Mapping[str, Any]:
    file = path / "manifest.json"
    if not file.is_file():
        return {}
    try:
        manifest = json.loads(file.read_bytes())
    except ValueError as error:
        raise VectorsError(f"{file}: {error}") from error
    if not isinstance(manifest, dict):
        raise VectorsError(f"{file}: not a manifest")
    if manifest.get("state") == "running":
        raise VectorsError(f"{path}: its job has not finished; complete it with --resume first")
    return manifest


def _footer(part: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(part)
    except (OSError, pa.ArrowException) as error:
        raise VectorsError(f"{part}: {error}") from error


def _is_alike(one: pa.Schema, other: pa.Schema) -> bool:
    """Returns whether two schemas have the same columns, of the same model and data type."""
    return one.equals(other, check_metadata=False) and _own_metadata(one) == _own_metadata(other)


def _own_metadata(schema: pa.Schema) -> dict[bytes, bytes]:
    metadata: Mapping[bytes, bytes] = schema.metadata or {}
    return {name: value for name, value in metadata.items() if name.startswith(b"alignserve.")}


def _rows_of_part(part: Path, wanted: NDArray[np.int64], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(part) as file:
        first = 0
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            if np.any((wanted >= first) & (wanted < end)):
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                    here = wanted[(wanted >= first) & (wanted < first + len(batch))] - first
                    if here.size:
                        yield batch.take(pa.array(here))
                    first += len(batch)
            first = end
