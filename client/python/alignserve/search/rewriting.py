"""Writes a folder of vectors again with every vector changed, part by part, and accounts for its rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from alignserve.datasets import durable
from alignserve.datasets.ledger import Ledger
from alignserve.datasets.output import OutputFolder, read_manifest
from alignserve.datasets.records import ShardRecord
from alignserve.search.vectors import COLUMNS, VectorFolder, VectorsError, column_of, vectors_of

Convert = Callable[[NDArray[Any], str], NDArray[Any]]
"""Maps (n, dim) vectors of a modality to (n, another dim) vectors, of any data type."""


def rewrite(
    folder: VectorFolder,
    to: Path,
    convert: Convert,
    *,
    manifest: Mapping[str, Any],
    metadata: Mapping[str, str],
    files: Mapping[str, bytes],
    resume: bool,
    on_rows: Callable[[int], object] = lambda _: None,
) -> Ledger:
    """Writes every row of a folder with other vectors, in constant memory; other columns stay as they are.

    What the folder lacks of its source is a problem of the output too.

    Args:
        folder: The rows.
        to: The output; each part of the folder becomes one part.
        convert: Changes the vectors.
        manifest: What the output's manifest says besides its sources; the same when it is resumed.
        metadata: Replaces entries of the schema's metadata, by their names behind `alignserve.`.
        files: Content of more files of the output, by name.
        resume: Go on with what an earlier run has left.
        on_rows: Called with the number of rows that were written, batch by batch.

    Raises:
        OutputError: The output cannot be used.
        VectorsError: A part cannot be read.
        OSError: The output cannot be written.
    """
    asked = {**manifest, "sources": sources_of(folder)}
    schema = _schema(folder, convert, metadata)
    with OutputFolder.create(to, asked, resume=resume, sources=[folder.path]) as output:
        for name, content in files.items():
            draft = output.draft()
            draft.write_bytes(content)
            durable.move(draft, to / name)
        for part, rows in enumerate(folder.part_rows):
            if output.progress(part).is_complete:
                on_rows(rows)
                continue
            draft = output.draft()
            _write_part(folder, part, draft, schema, convert, on_rows)
            drafts = {f"part-{output.stem(part, 0)}.parquet": draft} if rows else {}
            output.commit(ShardRecord(part, 0, 0, rows, True, rows, rows), drafts)
        return output.finish(problems=folder.problems)


def begun(to: Path, section: str) -> Mapping[str, Any] | None:
    """Returns a section of the manifest of an output that an earlier run has begun, or `None`."""
    if not (to / "manifest.json").is_file():
        return None
    found: Mapping[str, Any] | None = read_manifest(to).get(section)
    return found


def sources_of(folder: VectorFolder) -> list[dict[str, str]]:
    """Returns the parts of a folder as a manifest has them, with digests of their sizes and times."""
    return [{"name": part.name, "digest": _digest(part)} for part in folder.parts]


def _digest(part: Path) -> str:
    status = part.stat()
    return hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode()).hexdigest()


def _write_part(
    folder: VectorFolder,
    part: int,
    draft: Path,
    schema: pa.Schema,
    convert: Convert,
    on_rows: Callable[[int], object],
) -> None:
    written = 0
    vectors = {column: name for name, column in COLUMNS.items()}
    plain = [name for name in schema.names if name not in vectors]  # vectors have no values that repeat
    with pq.ParquetWriter(draft, schema, use_dictionary=plain) as writer:
        for batch in folder.part_batches(part):
            columns = [
                _converted(batch.column(name), vectors[name], convert)
                if name in vectors
                else batch.column(name)
                for name in schema.names
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            written += len(batch)
            on_rows(len(batch))
    if written != folder.part_rows[part]:
        raise VectorsError(
            f"{folder.parts[part]} has {written} rows, but its footer says {folder.part_rows[part]}"
        )


def _converted(column: pa.Array, modality: str, convert: Convert) -> pa.Array:
    is_there, vectors = vectors_of(column)
    return column_of(is_there, convert(vectors, modality))


def _schema(folder: VectorFolder, convert: Convert, metadata: Mapping[str, str]) -> pa.Schema:
    schema = folder.schema
    for name in folder.modalities:
        position = schema.get_field_index(COLUMNS[name])
        field = schema.field(position)
        empty = convert(_no_vectors(field.type), name)
        kind = pa.list_(pa.from_numpy_dtype(empty.dtype), empty.shape[1])
        schema = schema.set(position, pa.field(field.name, kind, field.nullable))
    changed = {f"alignserve.{name}".encode(): value.encode() for name, value in metadata.items()}
    return schema.with_metadata({**(folder.schema.metadata or {}), **changed})


def _no_vectors(kind: pa.DataType) -> NDArray[Any]:
    return vectors_of(pa.array([], kind))[1]
