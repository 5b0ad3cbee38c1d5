"""Columns of a store as columns of a Lance table: their names, their types and their values."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from alignserve.datasets.sources.keys import is_unicode
from alignserve.search.store import ColumnKind, Entry

KEY = "key"
EMBEDDING = "embedding"

_KINDS: Mapping[pa.DataType, ColumnKind] = {
    pa.string(): "string",
    pa.int64(): "number",
    pa.float64(): "number",
    pa.bool_(): "boolean",
}
_INT64 = range(-(1 << 63), 1 << 63)
_EXACT_IN_FLOATS = range(-(1 << 53), (1 << 53) + 1)

_UNNAMED = "%"  # Lance cannot read a table with an empty name

# Lance reads a dot in a name as a path, and its own columns start with an underscore.
_SPECIAL = re.compile(r"^_|[^\w -]", re.ASCII)


def physical(name: str) -> str:
    """Returns a column's name in the table: special characters in percent-encoding, as in URLs.

    A column without a name, such as the index that pandas writes to CSV, is `%` there.
    """
    if not name:
        return _UNNAMED
    if name in (KEY, EMBEDDING):
        return f"%{ord(name[0]):02X}{name[1:]}"
    return _SPECIAL.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), name)


def logical(name: str) -> str:
    """Returns the column whose name in the table this is."""
    return "" if name == _UNNAMED else unquote(name)


def kind_of(type_: pa.DataType) -> ColumnKind | None:
    """Returns what the values of a column are, or `None` if no filter can name it."""
    return _KINDS.get(type_)


def learn_types(entry: Entry, known: Mapping[str, pa.DataType], found: dict[str, pa.DataType]) -> None:
    """Adds the types of the columns that a row has and the store lacks.

    Args:
        entry: To be put.
        known: The types of the store's columns.
        found: Those of the rows before it in the batch.

    Raises:
        ValueError: A value does not fit its column.
    """
    for name, value in entry.columns.items():
        _check_unicode(name, "a column's name")
        _check_unicode(value, f"column {name!r}")
        type_ = known.get(name) or found.get(name)
        if type_ is None:
            if (new := _type_of(value, name)) is not None:
                found[name] = new
        elif type_ == pa.int64() and isinstance(value, float) and name in found:
            found[name] = pa.float64()
        elif not _fits(value, type_):
            raise ValueError(
                f"column {name!r} has {_describe(type_)}, and {value!r} is not of that type; leave the "
                "column out, or index into another store"
            )


def array(values: Iterable[Any], type_: pa.DataType) -> pa.Array:
    """Returns the values as a column; NaN, which equals nothing, becomes a missing value."""
    return pa.array(
        (None if isinstance(value, float) and math.isnan(value) else value for value in values), type=type_
    )


def check_key(key: str) -> None:
    """Raises `ValueError` if a key is not Unicode."""
    _check_unicode(key, "the key")


def _check_unicode(value: Any, what: str) -> None:
    if isinstance(value, str) and not is_unicode(value):
        raise ValueError(f"{what} is not Unicode text; it has lone surrogates")


def _type_of(value: Any, name: str) -> pa.DataType | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int) and value in _INT64:
        return pa.int64()
    if isinstance(value, float):
        return pa.float64()
    if isinstance(value, str):
        return pa.string()
    raise ValueError(
        f"column {name!r} has {value!r}; a store keeps texts, true and false, and numbers of 64 bits"
    )


def _fits(value: Any, type_: pa.DataType) -> bool:
    if value is None:
        return True
    if isinstance(value, bool):
        return bool(type_ == pa.bool_())
    if isinstance(value, int):
        return bool(type_ == pa.int64() and value in _INT64) or bool(
            type_ == pa.float64() and value in _EXACT_IN_FLOATS
        )
    if isinstance(value, float):
        return bool(type_ == pa.float64())
    return isinstance(value, str) and bool(type_ == pa.string())


def _describe(type_: pa.DataType) -> str:
    return {"string": "texts", "int64": "whole numbers", "double": "numbers", "bool": "true and false"}.get(
        str(type_), str(type_)
    )
