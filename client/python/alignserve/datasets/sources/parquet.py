"""Reads Parquet row group by row group, in batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from alignserve.datasets.row import Row
from alignserve.datasets.source import BrokenSourceError, Cursor
from alignserve.datasets.sources.files import FileError, digest_of, open_regular
from alignserve.datasets.sources.rows import RowBuilder, RowError
from alignserve.datasets.sources.types import with_integers

_BATCH_BYTES = 16 << 20
_MAX_BATCH_ROWS = 512
_BUFFER_BYTES = (
    1 << 20
)  # a column is read through it; without one, all of its part of a row group would be loaded
_STATUS_COLUMNS = ("status", "error_message")  # of img2dataset


@dataclass(frozen=True, slots=True)
class ParquetFile:
    """A Parquet file.

    A row's place is its number in the file, from 0, and a cursor is the number of rows before it. However
    large a row group is, about 16 MiB of it are decoded at a time, and at least one page of each column:
    writers put up to 1,024 values in one.

    A file whose end is missing has no readable rows. A page that is damaged ends the file; the rows of the
    batches before it are whole.

    Attributes:
        name: The file's path below the source.
        path: Of the file.
        builder: Makes the rows.
    """

    name: str
    path: Path
    builder: RowBuilder

    def digest(self) -> str:
        return digest_of(self.path)

    def rows(self, start: Cursor = 0) -> Iterator[tuple[Row, Cursor]]:
        """Yields the rows, see `SourceFile`."""
        number = start
        try:
            with _opened(self.path) as file:
                names = [name for name in file.schema_arrow.names if name in self._read]
                for batch in _batches(file, names, start):
                    for values in _values(batch):
                        row = self.builder.build(f"{self.name}:{number}", values)
                        number += 1
                        yield row, number
        except (FileError, OSError, pa.ArrowException) as error:
            raise BrokenSourceError(f"{self.path}, row {number}: {_first_line(error)}") from error

    @property
    def _read(self) -> frozenset[str]:
        return self.builder.needed.union(_STATUS_COLUMNS if self.builder.image is not None else ())


def schema_of(path: Path) -> pa.Schema:
    """Returns the schema of a file.

    Raises:
        FileError: It cannot be read, is cut off or damaged.
    """
    try:
        with _opened(path) as file:
            return file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise FileError("UNREADABLE", _first_line(error)) from error


@contextmanager
def _opened(path: Path) -> Iterator[parquet.ParquetFile]:
    with open_regular(path) as file:
        yield parquet.ParquetFile(
            file,
            buffer_size=_BUFFER_BYTES,
            pre_buffer=False,  # it would load all columns of a row group
            page_checksum_verification=True,
        )


def _batches(file: parquet.ParquetFile, names: list[str], start: int) -> Iterator[pa.RecordBatch]:
    """Yields the rows from a number on; batches begin at the same rows wherever the reading starts."""
    metadata = file.metadata
    first = 0
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        skipped = max(0, start - first)
        first += count
        if skipped >= count:
            continue
        for batch in file.iter_batches(_batch_rows(metadata.row_group(group)), [group], names):
            if skipped < batch.num_rows:
                yield batch.slice(skipped)
            skipped = max(0, skipped - batch.num_rows)


def _batch_rows(group: Any) -> int:
    bytes_per_row: int = max(1, group.total_byte_size // group.num_rows)
    return max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // bytes_per_row))


def _values(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    columns = {name: _column_values(batch.column(name)) for name in batch.schema.names}
    for number in range(batch.num_rows):
        yield {name: values[number] for name, values in columns.items()}


def _column_values(column: pa.Array) -> list[Any]:
    """Returns a column as Python values; a value that cannot be one is a `RowError`.

    Times in nanoseconds become integers, also within lists and structs, which pyarrow takes for the same
    type: Python's own times are coarser.
    """
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    if (type_ := with_integers(column.type)) != column.type:
        column = column.cast(type_)
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError, pa.ArrowException):
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError, pa.ArrowException) as error:
        return RowError("COLUMN_INVALID", f"a value of type {scalar.type} cannot be read: {error}")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
