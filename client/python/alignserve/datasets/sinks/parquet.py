"""Parquet: a file per shard, with the embeddings as fixed-size lists next to the key and the kept columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from alignserve._results import ModelInfo
from alignserve.datasets.opened import Kind, OpenRow
from alignserve.datasets.sinks import Drafts
from alignserve.datasets.sinks.table import Column, good_rows, kept_columns, matrix, schema_metadata

_OWN = ("key", "image_embedding", "text_embedding", "text")


class ParquetSink:
    """Writes `part-STEM.parquet`, all with the same schema.

    Args:
        kept: Columns of the source.
        kinds: The parts of rows that are embedded.
        has_text: Write a column with the text.
        has_path: Write a column with the path of the image's file, where there is one.
        info: Of the model.
        dtype: `float32` or `float16`.
    """

    def __init__(
        self,
        kept: pa.Schema,
        kinds: Sequence[Kind],
        info: ModelInfo,
        dtype: str,
        *,
        has_text: bool,
        has_path: bool = False,
    ) -> None:
        self._kinds = kinds
        key = Column(pa.field("key", pa.string(), nullable=False), lambda row: row.key)
        text = [Column(pa.field("text", pa.string()), lambda row: row.text)] if has_text else []
        path = [Column(pa.field("path", pa.string()), lambda row: row.image_path)] if has_path else []
        own = [key, *text, *path]
        names = [*_OWN, *(column.field.name for column in path)]
        self._columns = [*own, *kept_columns(kept, names)]
        self._type = pa.list_(pa.float16() if dtype == "float16" else pa.float32(), info.embedding_dimension)
        vectors = [pa.field(f"{kind}_embedding", self._type, nullable=False) for kind in kinds]
        fields = [key.field, *vectors, *(column.field for column in self._columns[1:])]
        metadata = schema_metadata(fingerprint=info.fingerprint, model=info.model_id, dtype=dtype)
        self._schema = pa.schema(fields, metadata=metadata)
        self.columns: Sequence[str] = self._schema.names

    def write(self, rows: Sequence[OpenRow], stem: str, draft: Callable[[], Path]) -> Drafts:
        """See `Sink.write`."""
        good, (keys, *others) = good_rows(rows, self._columns)
        if not good:
            return Drafts({}, 0)
        vectors = [self._vectors(good, kind) for kind in self._kinds]
        table = pa.Table.from_arrays([keys, *vectors, *others], schema=self._schema)
        path = draft()
        # Vectors neither compress nor repeat.
        names = [name for name in self.columns if name not in _OWN[1:3]]
        with path.open("wb") as file:  # pyarrow takes no path that is not UTF-8
            pq.write_table(table, file, use_dictionary=names, compression="zstd", write_statistics=names)
        return Drafts({f"part-{stem}.parquet": path}, table.num_rows)

    def _vectors(self, rows: Sequence[OpenRow], kind: Kind) -> pa.Array:
        values = pa.array(matrix(rows, kind).reshape(-1), self._type.value_type)
        return pa.FixedSizeListArray.from_arrays(values, type=self._type)
