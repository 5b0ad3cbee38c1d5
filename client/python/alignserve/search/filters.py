"""Filters on the columns of a store: `{"license": "CC0", "width": {"min": 640}}`.

A filter is a mapping from columns to what their values must be; a row has to meet all of it.

- A value stands for itself: text, a number, `True` or `False`, or `None` for rows without a value.
- A mapping has conditions: `min` and `max`, both inclusive; `in`, a list of values; `contains`, a part of a
  text, in the same case.

Texts are ordered by code point. A number equals a number of the same value (1 and 1.0), and never `True`. A
row without a value meets only `None`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from alignserve.datasets.sources.keys import is_unicode
from alignserve.search.store import ColumnKind

Where: TypeAlias = Mapping[str, Any]
"""A filter."""

Operator: TypeAlias = Literal["equals", "min", "max", "contains"]

_NAMES = {"string": "text", "number": "numbers", "boolean": "true or false"}
_INTEGER = re.compile(r"[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_MAX_DIGITS = 400  # more are above every float; Python itself reads 4,300
_BOOLEANS = {"true": True, "false": False}


class FilterError(ValueError):
    """A filter names a column that is not there, or a value that the column cannot have."""


@dataclass(frozen=True, slots=True)
class WrittenCondition:
    """A condition as someone wrote it, before the type of its column is known.

    Attributes:
        column: Its name.
        operator: `equals` for the same column more than once means any of the values.
        value: The value as text, exactly as written.
    """

    column: str
    operator: Operator
    value: str


def matches(row: Mapping[str, Any], where: Where) -> bool:
    """Returns whether a row's columns meet a filter that was checked."""
    return all(_meets(row.get(column), wanted) for column, wanted in where.items())


def read_conditions(written: Sequence[WrittenCondition], columns: Mapping[str, ColumnKind]) -> dict[str, Any]:
    """Returns the filter that conditions state together, with values of the columns' types.

    Raises:
        FilterError: A column is not there, a value does not fit it, or a condition is given twice.
    """
    where: dict[str, Any] = {}
    for one in written:
        value = _read(one.value, one.column, _kind(one.column, columns), one.operator)
        conditions = where.setdefault(one.column, {})
        if one.operator == "equals":
            conditions.setdefault("in", []).append(value)
        elif one.operator in conditions:
            raise FilterError(f"column {one.column!r} has two conditions of kind {one.operator}; give one")
        else:
            conditions[one.operator] = value
    return {column: _plain(conditions) for column, conditions in where.items()}


def check_filter(where: object, columns: Mapping[str, ColumnKind]) -> dict[str, Any]:
    """Returns a filter, after checking its columns, conditions and types.

    Raises:
        FilterError: It is not one, or it does not fit the columns.
    """
    if not isinstance(where, Mapping):
        raise FilterError('a filter is an object of columns, such as {"license": "CC0"}')
    for column, wanted in where.items():
        kind = _kind(column, columns)
        if not isinstance(wanted, Mapping):
            _check_value(wanted, column, kind)
            continue
        if not wanted:
            raise FilterError(f"column {column!r} has no condition; give one of {', '.join(_CONDITIONS)}")
        for name, value in wanted.items():
            if name not in _CONDITIONS:
                raise FilterError(
                    f"unknown condition {name!r} of column {column!r}; there are {', '.join(_CONDITIONS)}"
                )
            _check_condition(name, value, column, kind)
    return dict(where)


def merged(one: Where, other: Where) -> dict[str, Any]:
    """Returns a filter that rows meet if they meet both.

    Raises:
        FilterError: Both have the same column.
    """
    both = sorted(set(one) & set(other))
    if both:
        raise FilterError(f"column {both[0]!r} is filtered in two places; put its conditions together")
    return {**one, **other}


def _meets(value: Any, wanted: Any) -> bool:
    if not isinstance(wanted, Mapping):
        return _equals(value, wanted)
    return all(_CONDITIONS[name](value, limit) for name, limit in wanted.items())


def _equals(value: Any, wanted: Any) -> bool:
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    return bool(value == wanted)


def _is_in(value: Any, wanted: Sequence[Any]) -> bool:
    return any(_equals(value, one) for one in wanted)


# NaN compares as false, so rows with it are outside of every range.
_CONDITIONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "min": lambda value, limit: value is not None and value >= limit,
    "max": lambda value, limit: value is not None and value <= limit,
    "in": _is_in,
    "contains": lambda value, part: value is not None and part in value,
}


def _kind(column: object, columns: Mapping[str, ColumnKind]) -> ColumnKind:
    if isinstance(column, str) and column in columns:
        return columns[column]
    near = difflib.get_close_matches(str(column), columns, 1)
    if near:
        hint = f"; did you mean {near[0]}?"
    else:
        hint = f"; it has {', '.join(sorted(columns))}" if columns else "; it has no columns"
    raise FilterError(f"the store has no column {column!r}{hint}")


def _read(text: str, column: str, kind: ColumnKind, operator: Operator) -> Any:
    if operator == "contains":
        _check_condition(operator, text, column, kind)
        return text
    if kind == "string":
        return text
    if kind == "boolean":
        if operator != "equals":
            raise FilterError(f"column {column!r} has true or false, which have no order; use equality")
        if text.lower() not in _BOOLEANS:
            raise FilterError(f"column {column!r} has true or false, not {text!r}")
        return _BOOLEANS[text.lower()]
    return _number(text, column)


def _plain(conditions: dict[str, Any]) -> Any:
    """Returns the value itself if it is the only condition."""
    return conditions["in"][0] if list(conditions) == ["in"] and len(conditions["in"]) == 1 else conditions


def _number(text: str, column: str) -> int | float:
    if _INTEGER.fullmatch(text) and len(text) <= _MAX_DIGITS:
        return int(text)  # exact, also above 2^53
    # float() also takes 1_000, nan and inf
    value = float(text) if _DECIMAL.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise FilterError(f"column {column!r} has numbers, and {text[:100]!r} is not one")
    return value


def _check_condition(name: str, value: Any, column: str, kind: ColumnKind) -> None:
    if name == "in":
        if not isinstance(value, (list, tuple)):
            raise FilterError(f"column {column!r}: in needs a list of values")
        for one in value:
            _check_value(one, column, kind)
    elif name == "contains":
        if kind != "string":
            raise FilterError(f"column {column!r} has {_NAMES[kind]}; contains is for text")
        _check_value("" if value is None else value, column, kind)
        if not value:
            raise FilterError(f"column {column!r}: contains needs a text")
    else:
        if kind == "boolean":
            raise FilterError(f"column {column!r} has true or false, which have no order; use equality")
        if value is None:
            raise FilterError(f"column {column!r}: {name} needs a value")
        _check_value(value, column, kind)


def _check_value(value: Any, column: str, kind: ColumnKind) -> None:
    if value is None:
        return
    fits = {
        "string": isinstance(value, str) and is_unicode(value),
        "boolean": isinstance(value, bool),
        "number": _is_number(value),
    }
    if not fits[kind]:
        raise FilterError(f"column {column!r} has {_NAMES[kind]}, and {value!r} is not of that kind")


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)
