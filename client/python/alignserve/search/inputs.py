"""Finds the pictures and texts of rows whose vectors were stored, and embeds them again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignserve import Client, ImageItem, TextItem
from alignserve.datasets.paths import path_of
from alignserve.datasets.row import Row, RowFailure
from alignserve.datasets.source import BrokenSourceError, Dataset
from alignserve.search.vectors import COLUMNS, VectorFolder, VectorsError

_PATH_COLUMNS = ("image_path", "path")  # looked for if no column is named
_PIECE = 256  # rows whose pictures may be in memory, if they are in the folder itself

_GONE = RowFailure("ROW_GONE", "the source has no row with this key any more")
_MISSING = RowFailure("INPUT_MISSING", "the row has a vector, but not what was embedded")


@dataclass(frozen=True, slots=True)
class Embedded:
    """A vector that was made again.

    Attributes:
        key: Of its row.
        modality: `image` or `text`.
        vector: (dim,) float32 of length 1, or `None`.
        failure: Why there is none.
    """

    key: str
    modality: str
    vector: NDArray[np.float32] | None = None
    failure: RowFailure | None = None


def rows_from_source(keys: Iterable[str], dataset: Dataset) -> Iterator[Row]:
    """Yields the rows with these keys, with their inputs as the source has them now.

    The source is read until all of them are found. A row that it does not have any more yields a failure.
    """
    wanted = set(keys)
    for row in _rows(dataset):
        if row.key in wanted:
            wanted.remove(row.key)
            yield row
        if not wanted:
            return
    for key in sorted(wanted):
        yield Row(key, failure=_GONE)


def rows_from_folder(
    folder: VectorFolder, numbers: NDArray[np.int64], *, image_column: str | None, image_root: Path | None
) -> Iterator[Row]:
    """Returns rows with the inputs that the folder itself keeps: texts, and paths or bytes of pictures.

    Args:
        folder: The rows.
        numbers: Of the rows to return.
        image_column: Column of paths, of the bytes of files, or of both as Hugging Face datasets have them.
        image_root: Folder that relative paths start from; by default the current one.

    Raises:
        VectorsError: The folder keeps no inputs. The message says how to give them.
    """
    columns = _input_columns(folder, image_column)
    return _kept_rows(folder, numbers, columns, image_root or Path())


def embed_again(client: Client, rows: Iterable[Row], modalities: Sequence[str]) -> Iterator[Embedded]:
    """Yields the vectors of rows by the server's model, as they become ready.

    Args:
        client: Of the server.
        rows: With inputs; read as the server takes them.
        modalities: Which vectors to make.

    Raises:
        AlignserveError: The server cannot be reached any more. Rows that it refuses yield failures.
    """
    failed: list[Embedded] = []
    for result in client.stream(_items(rows, modalities, failed)):
        key, modality = result.id
        if result.error is None:
            yield Embedded(key, modality, np.asarray(result.embedding, np.float32))
        else:
            reason = result.error.reason or result.error.code.name
            yield Embedded(key, modality, failure=RowFailure(reason, result.error.message))
    yield from failed


def _items(
    rows: Iterable[Row], modalities: Sequence[str], failed: list[Embedded]
) -> Iterator[ImageItem | TextItem]:
    for row in rows:
        for modality in modalities:
            about = (row.key, modality)
            if row.failure is not None:
                failed.append(Embedded(*about, failure=row.failure))
            elif modality == "image" and row.image is not None:
                yield ImageItem(row.image, id=about)
            elif modality == "text" and row.text is not None:
                yield TextItem(row.text, truncate=True, id=about)
            else:
                failed.append(Embedded(*about, failure=_MISSING))


def _kept_rows(
    folder: VectorFolder, numbers: NDArray[np.int64], columns: Mapping[str, str], root: Path
) -> Iterator[Row]:
    names = list(dict.fromkeys(columns.values()))
    for start in range(0, len(numbers), _PIECE):
        piece = numbers[start : start + _PIECE]
        rows = folder.take(piece, names).to_pylist()
        for key, values in zip(folder.keys(piece), rows, strict=True):
            yield _row(key, values, columns, root)


def _rows(dataset: Dataset) -> Iterator[Row]:
    for file in dataset.files:
        try:
            for row, _ in file.rows():
                yield row
        except BrokenSourceError:
            continue  # rows behind the break count as gone


def _input_columns(folder: VectorFolder, image_column: str | None) -> dict[str, str]:
    """Returns the columns that have the inputs of each modality that there are vectors of."""
    names = folder.schema.names
    if image_column is not None and image_column not in names:
        raise VectorsError(f"{folder.path}: no column {image_column}; its columns are {', '.join(names)}")
    image = image_column or next((name for name in _PATH_COLUMNS if name in names), None)
    found: Mapping[str, str | None] = {"image": image, "text": "text" if "text" in names else None}
    missing = [modality for modality in folder.modalities if found[modality] is None]
    if missing:
        raise VectorsError(
            f"{folder.path} has {' and '.join(COLUMNS[modality] for modality in missing)}, but not what was "
            "embedded; give what embed-dataset read with --source, or the column of image files with "
            "--image-column"
        )
    return {modality: column for modality in folder.modalities if (column := found[modality]) is not None}


def _row(key: str, values: Mapping[str, Any], columns: Mapping[str, str], root: Path) -> Row:
    image = values.get(columns["image"]) if "image" in columns else None
    text = values.get(columns["text"]) if "text" in columns else None
    return Row(key, image=_image(image, root), text=text)


def _image(value: Any, root: Path) -> bytes | Path | None:
    if isinstance(value, dict):  # {bytes, path}
        value = value.get("bytes") or value.get("path")
    return root / path_of(value) if isinstance(value, str) else value
