"""Finds out what is to be indexed: vectors that exist, or rows to embed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from alignserve._suffixes import IMAGE_SUFFIXES, OPTIONAL_IMAGE_SUFFIXES
from alignserve.datasets.output import FORMAT, MANIFEST
from alignserve.datasets.sources import SourceOptions, open_dataset
from alignserve.search.sources import DatasetSource, Source, VectorSource
from alignserve.search.space import Space, column_type, compaction_of
from alignserve.search.vectors import COLUMNS, VectorFolder, VectorsError

_VECTOR_JOBS = ("embed", "compact", "migrate")


@dataclass(frozen=True, slots=True)
class _ToEmbed:
    """A dataset to embed.

    Attributes:
        name: The same in every run.
        paths: Of its sources.
        deletes: Whether a row that is missing was deleted.
    """

    name: str
    paths: Sequence[str]
    deletes: bool


@dataclass(slots=True)
class FoundSources:
    """Sources with vectors, and sources to embed.

    Attributes:
        vectors: Folders and files with vectors.
        to_embed: Datasets.
    """

    vectors: list[VectorFolder] = field(default_factory=list)
    to_embed: list[_ToEmbed] = field(default_factory=list)

    def spaces(self, column: str | None, fingerprint: str = "") -> list[Space]:
        """Returns the spaces of the vectors.

        Args:
            column: Of the vectors.
            fingerprint: Of the model of vectors that do not say theirs.

        Raises:
            VectorsError: A column has no vectors, or what their queries need is missing.
        """
        return [_space(folder, _column(folder, column), fingerprint) for folder in self.vectors]

    def open(
        self,
        options: SourceOptions,
        spaces: Sequence[Space],
        store: Space,
        *,
        column: str | None,
        key_prefix: str,
    ) -> Iterator[Source]:
        """Yields the sources.

        Args:
            options: Of datasets to embed.
            spaces: Of the vectors, as `spaces` returned them.
            store: The space that vectors are taken into.
            column: Of the vectors.
            key_prefix: Put before keys.

        Raises:
            SourceError: A source is missing, or it is not clear what it is.
        """
        for folder, space in zip(self.vectors, spaces, strict=True):
            name = str(folder.path.absolute())
            yield VectorSource(name, folder, _column(folder, column), space, store, key_prefix=key_prefix)
        for one in self.to_embed:
            yield DatasetSource(one.name, open_dataset(one.paths, options), one.deletes, key_prefix)


def find_sources(paths: Sequence[str], column: str | None) -> FoundSources:
    """Returns the sources.

    Each is a dataset of its own, except single images: they are one, and none of them was deleted because
    another run does not name it.

    Args:
        paths: As given.
        column: Of vectors; Parquet files are then taken as vectors.

    Raises:
        VectorsError: Vectors cannot be read.
    """
    found = FoundSources()
    images = []
    for path in paths:
        if _has_vectors(Path(path), column):
            found.vectors.append(VectorFolder.open(Path(path), column))
        elif (
            Path(path).suffix.lower() in IMAGE_SUFFIXES | set(OPTIONAL_IMAGE_SUFFIXES)
            and Path(path).is_file()
        ):
            images.append(path)
        else:
            found.to_embed.append(_ToEmbed(os.path.abspath(path), [path], deletes=True))  # noqa: PTH100
    if images:
        found.to_embed.append(_ToEmbed(_folder_of(images), images, deletes=False))
    return found


def _has_vectors(path: Path, column: str | None) -> bool:
    if path.is_dir():
        return column is not None or _is_output(path)
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return False
    if column is not None:
        return True
    try:
        return not set(COLUMNS.values()).isdisjoint(pq.read_schema(path).names)
    except (OSError, pa.ArrowException):
        return False  # the dataset says what is wrong with it


def _is_output(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return False
    return manifest.get("job") in _VECTOR_JOBS


def _column(folder: VectorFolder, column: str | None) -> str:
    return column if column is not None else COLUMNS[folder.modalities[0]]


def _space(folder: VectorFolder, column: str, fingerprint: str) -> Space:
    compaction = compaction_of(folder)
    if compaction is None:
        return Space(folder.fingerprint or fingerprint, folder.model, _dimension(folder, column))
    found, wanted = folder.schema.field(column).type, column_type(compaction)
    if found != wanted:
        raise VectorsError(
            f"{folder.path}: column {column} has {found}, and its compaction makes {wanted}; make the folder "
            "again with alignserve compact-vectors"
        )
    return Space(compaction.fingerprint, folder.model, compaction.dimensions, compaction)


def _dimension(folder: VectorFolder, column: str) -> int:
    type_ = folder.schema.field(column).type
    if pa.types.is_fixed_size_list(type_) and pa.types.is_floating(type_.value_type):
        return int(type_.list_size)
    if not (pa.types.is_list(type_) or pa.types.is_large_list(type_)) or not pa.types.is_floating(
        type_.value_type
    ):
        raise VectorsError(
            f"{folder.path}: column {column} has {type_}, which are not vectors of float32 or float16; "
            "give the original vectors, or what alignserve compact-vectors made of them"
        )
    for _, batch in folder.batches([column]):
        for value in batch.column(0):
            if value.is_valid:
                return len(value)
    raise VectorsError(f"{folder.path}: column {column} has no vectors")


def _folder_of(files: Sequence[str]) -> str:
    """Returns the folder that holds all of the files, as the source of their keys."""
    return os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])  # noqa: PTH100, PTH120
