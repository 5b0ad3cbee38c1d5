"""What an index is made from: vectors that exist, or rows that are still to be embedded."""

from __future__ import annotations

import datetime
import decimal
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from alignserve.datasets.paths import path_text
from alignserve.datasets.row import Row, RowFailure
from alignserve.datasets.source import BrokenSourceError, Dataset
from alignserve.search.pictures import PATH_COLUMN
from alignserve.search.space import Space
from alignserve.search.store import BOOKKEEPING
from alignserve.search.vectors import COLUMNS, VectorFolder, vectors_of

_KEY, _TEXT = "key", "text"
_TEXT_VECTORS = "text_embedding"
_INT64 = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row of a source.

    Attributes:
        row: With columns that a store can keep.
        embedding: (dim,) of length 1, or `None` if the row is to be embedded.
    """

    row: Row
    embedding: NDArray[np.float32] | None = None


class Source(Protocol):
    """Something to index.

    Attributes:
        name: The same in every run; rows of a store are known by it.
        deletes: Whether a row that the source lacks was deleted from it.
        problems: What could not be read, so far.
        skipped: Number of files that are not rows, by suffix or kind.
    """

    name: str
    deletes: bool
    problems: list[str]
    skipped: Counter[str]

    def rows(self) -> Iterator[SourceRow]:
        """Yields the rows."""


@dataclass(slots=True)
class DatasetSource:
    """The rows of a dataset, to be embedded: the image of a row that has one, and else its text."""

    name: str
    dataset: Dataset
    deletes: bool = True
    key_prefix: str = ""
    problems: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.problems += self.dataset.problems
        self.skipped += self.dataset.skipped

    def rows(self) -> Iterator[SourceRow]:
        """Yields the rows of all files; one that breaks off is a problem, and the others go on."""
        for file in self.dataset.files:
            try:
                for row, _ in file.rows():
                    yield SourceRow(self._kept(row))
            except BrokenSourceError as error:
                self.problems.append(str(error))

    def _kept(self, row: Row) -> Row:
        columns = kept_columns(row.columns)
        if isinstance(row.image, Path):
            columns.setdefault(PATH_COLUMN, path_text(row.image))
        if row.text is not None:
            columns.setdefault(_TEXT, row.text)
        failure = row.failure
        if failure is None and row.image is None and row.text is None:
            failure = RowFailure("ROW_EMPTY", "the row has neither an image nor a text")
        return Row(self.key_prefix + row.key, row.image, row.text, columns, failure)


@dataclass(slots=True)
class VectorSource:
    """Vectors that exist, in the output of `alignserve embed-dataset` or in other Parquet files.

    Attributes:
        column: Of the vectors.
        space: Of the vectors; those of another dimension fail.
        store: The space that they are taken into.
    """

    name: str
    folder: VectorFolder
    column: str
    space: Space
    store: Space
    deletes: bool = True
    key_prefix: str = ""
    problems: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        manifest = self.folder.manifest
        if manifest.get("state") == "incomplete":
            self.problems.append(
                f"{self.folder.path} is incomplete: some of its rows failed or were not reached"
            )

    def rows(self) -> Iterator[SourceRow]:
        """Yields a row for each vector; without a column `key`, the number of the row is its key."""
        others = [field.name for field in self.folder.schema if not _is_vector(field)]
        if self.column == _TEXT_VECTORS:  # a row with a path is taken for one of an image
            others = [name for name in others if name != PATH_COLUMN]
        for first, batch in self.folder.batches([self.column, *others]):
            vectors = self._decoded(batch.column(self.column))
            columns = {name: batch.column(name).to_pylist() for name in others}
            keys = columns.pop(_KEY, None) or [str(first + number) for number in range(len(batch))]
            for number, (key, vector) in enumerate(zip(keys, vectors, strict=True)):
                values = {name: column[number] for name, column in columns.items()}
                if key is None:
                    row = Row(f"row {first + number}", columns=kept_columns(values))
                    yield _failed(row, "KEY_MISSING", "the row has no key")
                    continue
                row = Row(f"{self.key_prefix}{key}", columns=kept_columns(values))
                yield self._checked(row, vector)

    def _decoded(self, column: pa.Array) -> list[NDArray[np.float32] | None]:
        """Returns the vectors of a column in floats."""
        compaction = self.space.compaction
        if compaction is None or pa.types.is_floating(column.type.value_type):
            return _vectors(column)
        is_there, codes = vectors_of(column)
        decoded = iter(compaction.decode(codes))
        return [next(decoded) if there else None for there in is_there.tolist()]

    def _checked(self, row: Row, vector: NDArray[np.float32] | None) -> SourceRow:
        if vector is None:
            return _failed(row, "VECTOR_MISSING", "the row has no vector")
        if len(vector) != self.space.dimension:
            message = f"the vector has {len(vector)} elements, not {self.space.dimension}"
            return _failed(row, "VECTOR_INVALID", message)
        length = float(np.linalg.norm(vector.astype(np.float64)))
        if not np.isfinite(length) or length == 0:
            return _failed(row, "VECTOR_INVALID", "the vector has NaN or infinity in it, or only zeros")
        unit = np.asarray(vector / length, np.float32)
        return SourceRow(row, self.store.taken(unit[None, :], self.space.fingerprint)[0])


def kept_columns(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the columns as a store can keep them.

    Dates and times become ISO texts, exact decimals and whole numbers above 64 bits texts, and lists and
    structs JSON. Bytes, which no filter can name, are left out, as are columns named like a store's own.
    """
    return {
        name: _kept(value)
        for name, value in columns.items()
        if not isinstance(value, bytes) and not name.startswith(BOOKKEEPING)
    }


def _kept(value: Any) -> Any:
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, int) and not isinstance(value, bool) and value not in _INT64:
        return str(value)
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value) if isinstance(value, (decimal.Decimal, datetime.timedelta)) else repr(value)


def _is_vector(field: pa.Field) -> bool:
    type_ = field.type
    is_list = pa.types.is_fixed_size_list(type_) or pa.types.is_list(type_) or pa.types.is_large_list(type_)
    return bool(is_list and (field.name in COLUMNS.values() or pa.types.is_floating(type_.value_type)))


def _vectors(column: pa.Array) -> list[NDArray[np.float32] | None]:
    """Returns the vectors of a column of lists of any length."""
    return [
        None if value is None else np.asarray(value, np.float32)
        for value in (
            scalar.values.to_numpy(zero_copy_only=False) if scalar.is_valid else None for scalar in column
        )
    ]


def _failed(row: Row, reason: str, message: str) -> SourceRow:
    return SourceRow(Row(row.key, columns=row.columns, failure=RowFailure(reason, message)))
