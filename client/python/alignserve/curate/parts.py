"""The Parquet files of a curated dataset: the pairs with their columns, verdict and reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignserve.curate.columns import PICTURE_FIELDS, TEXT_FIELDS
from alignserve.datasets.row import Row

KEPT, DROPPED = "kept", "dropped"

_IMAGE = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
_ID_BITS = 33  # of a row's position in its file, as Spark's monotonically_increasing_id has them
_BATCH_ROWS = 1024
_BATCH_BYTES = 16 << 20


def output_schema(
    source: pa.Schema, scores: Sequence[pa.Field], metadata: Mapping[str, str], *, has_images: bool
) -> pa.Schema:
    """Returns the columns of all parts: COYO's names first, then the source's other columns, then ours.

    Columns that are measured replace columns of the source with the same name.

    Args:
        source: The columns that are kept.
        scores: Columns of plug-ins and of the server.
        metadata: Of the schema.
        has_images: Whether there is a column for the images.
    """
    fields: dict[str, pa.Field] = {
        "id": pa.field("id", pa.int64()),
        "key": pa.field("key", pa.string()),
        **({"image": _IMAGE} if has_images else {}),
        "text": pa.field("text", pa.string()),
    }
    measured = [*PICTURE_FIELDS, *TEXT_FIELDS, *scores]
    verdict = [pa.field("verdict", pa.string()), pa.field("reasons", pa.list_(pa.string()))]
    for field in (*source, *measured, *verdict):
        if field.name == "id" or field.name not in ("key", "image", "text"):
            fields[field.name] = field
    return pa.schema(list(fields.values()), dict(metadata))


def row_id(file: int, position: int) -> int:
    """Returns a row's id as COYO's are made: the number of its file, then 33 bits of its position there."""
    return file << _ID_BITS | position


def image_value(row: Row) -> dict[str, Any] | None:
    """Returns a row's image as Hugging Face datasets write it: its bytes, or the path of its file."""
    if row.image is None:
        return None
    if isinstance(row.image, Path):
        return {"bytes": None, "path": str(row.image)}
    return {"bytes": row.image, "path": None}


class PartWriter:
    """Writes one Parquet file, a bounded number of rows and bytes at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.rows = 0
        self._schema = schema
        self._writer = pq.ParquetWriter(
            path, schema, compression="zstd", use_dictionary=["format", "language", "verdict"]
        )
        self._waiting: list[Mapping[str, Any]] = []
        self._bytes = 0

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds a row by the names of its columns."""
        self._waiting.append(row)
        self.rows += 1
        image = row.get("image") or {}
        self._bytes += len(image.get("bytes") or b"")
        if len(self._waiting) >= _BATCH_ROWS or self._bytes >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_pylist(self._waiting, self._schema))
        self._waiting, self._bytes = [], 0
