"""Filters and keys as conditions in DataFusion's SQL, which LanceDB reads; nothing in them is read as SQL.

Names go in backquotes and texts in single quotes, in which only the quote itself is special. Numbers are
written by Python, in the type of their column: the engine would compare whole numbers with others as
float64, in which 9007199254740993 equals 9007199254740992.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

_LEAST, _MOST = -(1 << 63), (1 << 63) - 1  # of 64 bits


def condition(where: Mapping[str, Any], names: Mapping[str, str], whole: Collection[str] = ()) -> str:
    """Returns the condition of a filter that was checked.

    Args:
        where: As `alignserve.search.filters` defines it.
        names: The engine's name of each column.
        whole: Columns of whole numbers of 64 bits.
    """
    parts = [
        part
        for column, wanted in where.items()
        for part in _parts(_identifier(names[column]), wanted, is_whole=column in whole)
    ]
    return " AND ".join(parts) if parts else "true"


def is_one_of(name: str, values: Sequence[Any], *, is_whole: bool = False) -> str:
    """Returns the condition that a column has one of these values."""
    possible = [_same(value, is_whole) for value in values if value is not None]
    known = [_literal(value) for value in possible if value is not None]
    parts = [f"{_identifier(name)} IN ({', '.join(known)})"] if known else []
    if None in values:
        parts.append(f"{_identifier(name)} IS NULL")
    return f"({' OR '.join(parts)})" if parts else "false"


def _parts(identifier: str, wanted: Any, *, is_whole: bool) -> list[str]:
    if not isinstance(wanted, Mapping):
        return [_equals(identifier, wanted, is_whole)]
    return [_one(identifier, name, value, is_whole) for name, value in wanted.items()]


def _one(identifier: str, name: str, value: Any, is_whole: bool) -> str:
    if name == "in":
        return is_one_of(identifier.strip("`"), value, is_whole=is_whole)
    if name == "contains":
        return f"contains({identifier}, {_literal(value)})"
    if isinstance(value, str):
        return f"{identifier} {'>=' if name == 'min' else '<='} {_literal(value)}"
    return _at_least(identifier, value, is_whole) if name == "min" else _at_most(identifier, value, is_whole)


def _equals(identifier: str, value: Any, is_whole: bool) -> str:
    if value is None:
        return f"{identifier} IS NULL"
    same = _same(value, is_whole)
    return "false" if same is None else f"{identifier} = {_literal(same)}"


def _same(value: Any, is_whole: bool) -> Any:
    """Returns a value in the type of its column, or `None` if no value of that type equals it."""
    if isinstance(value, (str, bool)):
        return value
    if is_whole:
        return int(value) if _LEAST <= value <= _MOST and value == int(value) else None
    nearest = _nearest(value)
    return nearest if nearest == value else None


def _at_least(identifier: str, value: int | float, is_whole: bool) -> str:
    if not is_whole:
        nearest = _nearest(value)
        return (
            f"{identifier} >= {_literal(nearest if nearest >= value else math.nextafter(nearest, math.inf))}"
        )
    least = math.ceil(value)
    return "false" if least > _MOST else f"{identifier} >= {_literal(max(least, _LEAST))}"


def _at_most(identifier: str, value: int | float, is_whole: bool) -> str:
    if not is_whole:
        nearest = _nearest(value)
        return (
            f"{identifier} <= {_literal(nearest if nearest <= value else math.nextafter(nearest, -math.inf))}"
        )
    most = math.floor(value)
    return "false" if most < _LEAST else f"{identifier} <= {_literal(min(most, _MOST))}"


def _nearest(value: int | float) -> float:
    """Returns the float64 nearest to a number."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _identifier(name: str) -> str:
    return f"`{name}`"


def _literal(value: Any) -> str:
    if isinstance(value, str):
        quoted = value.replace("'", "''")
        return f"'{quoted}'"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):  # the engine reads the least number of 64 bits as a float
        return str(value) if value > _LEAST else f"CAST('{value}' AS BIGINT)"
    return f"CAST('{value!r}' AS DOUBLE)"
