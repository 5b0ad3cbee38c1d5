"""Filters and keys as conditions in DataFusion's SQL, which LanceDB reads; nothing in them is read as SQL.

Names go in backquotes and texts in single quotes, in which only the quote itself is special. Numbers are
written by Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_INT64 = range(-(1 << 63), 1 << 63)


def condition(where: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Returns the condition of a filter that was checked.

    Args:
        where: As `alignserve.search.filters` defines it.
        names: The engine's name of each column.
    """
    parts = [part for column, wanted in where.items() for part in _parts(_identifier(names[column]), wanted)]
    return " AND ".join(parts) if parts else "true"


def is_one_of(name: str, values: Sequence[Any]) -> str:
    """Returns the condition that a column has one of these values."""
    known = [_literal(value) for value in values if value is not None]
    parts = [f"{_identifier(name)} IN ({', '.join(known)})"] if known else []
    if len(known) < len(values):
        parts.append(f"{_identifier(name)} IS NULL")
    return f"({' OR '.join(parts)})" if parts else "false"


def _parts(identifier: str, wanted: Any) -> list[str]:
    if not isinstance(wanted, Mapping):
        return [_equals(identifier, wanted)]
    return [_one(identifier, name, value) for name, value in wanted.items()]


def _one(identifier: str, name: str, value: Any) -> str:
    if name == "in":
        return is_one_of(identifier.strip("`"), value)
    if name == "contains":
        return f"contains({identifier}, {_literal(value)})"
    return f"{identifier} {'>=' if name == 'min' else '<='} {_literal(value)}"


def _equals(identifier: str, value: Any) -> str:
    return f"{identifier} IS NULL" if value is None else f"{identifier} = {_literal(value)}"


def _identifier(name: str) -> str:
    return f"`{name}`"


def _literal(value: Any) -> str:
    if isinstance(value, str):
        quoted = value.replace("'", "''")
        return f"'{quoted}'"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value in _INT64:
        return str(value)
    return f"CAST('{float(value)!r}' AS DOUBLE)"
