"""Turns rows into a table of one schema; a row whose values do not fit it fails, not its shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from alignserve.datasets.opened import Kind, OpenRow
from alignserve.datasets.row import RowFailure

_UNFIT = (pa.ArrowException, UnicodeError, TypeError, ValueError, OverflowError)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the output.

    Attributes:
        field: Its name and type.
        value: Returns its value in a row.
    """

    field: pa.Field
    value: Callable[[OpenRow], Any]


def kept_columns(schema: pa.Schema, own: Sequence[str]) -> list[Column]:
    """Returns the columns of a source; those with a name of the output's own become `source_NAME`."""
    return [
        Column(field.with_name(_free_name(field.name, [*own, *schema.names])), _value_of(field.name))
        for field in schema
    ]


def good_rows(rows: Sequence[OpenRow], columns: Sequence[Column]) -> tuple[list[OpenRow], list[pa.Array]]:
    """Returns the rows that have not failed, after failing those with unfit values, and their columns."""
    good = [row for row in rows if row.failure is None]
    try:
        return good, [_array(column, good) for column in columns]
    except _UNFIT:
        for row in good:
            _fail_if_unfit(row, columns)
    good = [row for row in good if row.failure is None]
    return good, [_array(column, good) for column in columns]


def matrix(rows: Sequence[OpenRow], kind: Kind) -> np.ndarray[Any, Any]:
    """Returns the vectors of rows: (rows, dim)."""
    return np.stack([row.vectors[kind] for row in rows])


def schema_metadata(*, fingerprint: str, model: str, dtype: str) -> dict[str, str]:
    """Returns the metadata that files of embeddings carry."""
    return {"alignserve.fingerprint": fingerprint, "alignserve.model": model, "alignserve.dtype": dtype}


def _free_name(name: str, taken: Sequence[str]) -> str:
    if taken.count(name) < 2:  # once in its own schema
        return name
    renamed = f"source_{name}"
    while renamed in taken:
        renamed = f"source_{renamed}"
    return renamed


def _value_of(name: str) -> Callable[[OpenRow], Any]:
    return lambda row: row.columns.get(name)


def _array(column: Column, rows: Sequence[OpenRow]) -> pa.Array:
    return pa.array([column.value(row) for row in rows], column.field.type)


def _fail_if_unfit(row: OpenRow, columns: Sequence[Column]) -> None:
    for column in columns:
        try:
            _array(column, [row])
        except _UNFIT as error:
            message = f"column {column.field.name} of type {column.field.type}: {error}"
            row.fail(RowFailure("COLUMN_UNFIT", message))
