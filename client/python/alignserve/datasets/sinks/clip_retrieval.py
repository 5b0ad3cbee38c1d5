"""The layout of clip-retrieval's inference, which its index, its back end and autofaiss read.

    img_emb/img_emb_STEM.npy           (rows, dim)
    text_emb/text_emb_STEM.npy         (rows, dim)
    metadata/metadata_STEM.parquet     image_path, caption, key and the kept columns

These readers sort the names in each folder, and match vectors and metadata by position. The stems are padded,
and a row is in all files of its shard or in none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alignserve._results import ModelInfo
from alignserve.datasets.opened import Kind, OpenRow
from alignserve.datasets.sinks import Drafts
from alignserve.datasets.sinks.table import Column, good_rows, kept_columns, matrix, schema_metadata

_FOLDERS: dict[Kind, str] = {"image": "img_emb", "text": "text_emb"}
_OWN = ("image_path", "caption", "key")


class ClipRetrievalSink:
    """Writes shards as clip-retrieval does; the arguments are those of `ParquetSink`."""

    def __init__(
        self,
        kept: pa.Schema,
        kinds: Sequence[Kind],
        info: ModelInfo,
        dtype: str,
        *,
        has_text: bool,
        has_path: bool = True,  # noqa: ARG002 — of `ParquetSink`; the key stands in for one that is missing
    ) -> None:
        self._kinds = kinds
        path = Column(pa.field("image_path", pa.string()), lambda row: row.image_path or row.key)
        caption = Column(pa.field("caption", pa.string()), lambda row: row.text)
        key = Column(pa.field("key", pa.string(), nullable=False), lambda row: row.key)
        own = [*([path] if "image" in kinds else []), *([caption] if has_text else []), key]
        self._columns = [*own, *kept_columns(kept, _OWN)]
        metadata = schema_metadata(fingerprint=info.fingerprint, model=info.model_id, dtype=dtype)
        self._schema = pa.schema([column.field for column in self._columns], metadata=metadata)
        self.columns: Sequence[str] = self._schema.names

    def write(self, rows: Sequence[OpenRow], stem: str, draft: Callable[[], Path]) -> Drafts:
        """See `Sink.write`."""
        good, arrays = good_rows(rows, self._columns)
        if not good:
            return Drafts({}, 0)
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        files = {f"metadata/metadata_{stem}.parquet": draft()}
        with files[f"metadata/metadata_{stem}.parquet"].open("wb") as metadata:  # see `ParquetSink`
            pq.write_table(table, metadata, compression="zstd")
        for kind in self._kinds:
            folder = _FOLDERS[kind]
            path = files[f"{folder}/{folder}_{stem}.npy"] = draft()
            _write_npy(path, matrix(good, kind))
        return Drafts(files, table.num_rows)


def _write_npy(path: Path, vectors: np.ndarray[Any, Any]) -> None:
    """Does what `np.save` does, which adds a suffix to paths and does not say that a disk is full."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(vectors))
        file.write(np.ascontiguousarray(vectors).data)
