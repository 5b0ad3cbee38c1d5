"""Filters: what is written becomes a condition of the column's type, and what rows meet it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from alignserve.search.filters import (
    FilterError,
    WrittenCondition,
    check_filter,
    matches,
    merged,
    read_conditions,
)
from alignserve.search.store import ColumnKind

COLUMNS: dict[str, ColumnKind] = {
    "license": "string",
    "width": "number",
    "is_photo": "boolean",
    "we=ird": "string",
}


@pytest.mark.parametrize(
    ("where", "row", "expected"),
    [
        ({}, {}, True),
        ({"license": "CC0"}, {"license": "CC0"}, True),
        ({"license": "CC0"}, {"license": "cc0"}, False),
        ({"license": "CC0"}, {}, False),
        ({"license": None}, {}, True),
        ({"license": None}, {"license": ""}, False),
        ({"width": 640}, {"width": 640.0}, True),
        ({"width": 1}, {"width": True}, False),
        ({"is_photo": True}, {"is_photo": True}, True),
        ({"is_photo": True}, {"is_photo": 1}, False),
        ({"width": {"min": 640}}, {"width": 640}, True),
        ({"width": {"min": 640}}, {"width": 639}, False),
        ({"width": {"min": 640}}, {"width": None}, False),
        ({"width": {"min": 640}}, {"width": math.nan}, False),
        ({"width": {"max": 640}}, {"width": math.nan}, False),
        ({"width": {"min": 1, "max": 3}}, {"width": 3}, True),
        ({"license": {"in": ["CC0", None]}}, {"license": None}, True),
        ({"license": {"in": []}}, {"license": "CC0"}, False),
        ({"license": {"contains": "C"}}, {"license": "CC0"}, True),
        ({"license": {"contains": "c"}}, {"license": "CC0"}, False),
        ({"license": {"contains": "C"}}, {"license": None}, False),
        ({"license": "CC0", "width": {"min": 2}}, {"license": "CC0", "width": 1}, False),
    ],
)
def test_a_row_meets_a_filter_or_does_not(where: Any, row: dict[str, Any], expected: bool) -> None:
    """All conditions hold at once; nothing equals a missing value but `None`."""
    assert matches(row, check_filter(where, COLUMNS)) is expected


@pytest.mark.parametrize(
    "value", ["'", '"', "\\", "a\nb", "=", "a=b", "", "007", "null", "%", "_", "ünï 🐈", "' OR 1=1 --"]
)
def test_a_text_is_taken_as_it_is_written(value: str) -> None:
    """Everything behind the first = is the value, whatever it means elsewhere."""
    where = read_conditions([WrittenCondition("license", "equals", value)], COLUMNS)

    assert where == {"license": value}
    assert matches({"license": value}, where)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("007", 7),
        ("-5", -5),
        ("9007199254740993", 9007199254740993),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
    ],
)
def test_numbers_are_read_for_columns_of_numbers(text: str, value: float) -> None:
    """Whole numbers stay exact, also beyond what a float holds."""
    where = read_conditions([WrittenCondition("width", "equals", text)], COLUMNS)

    assert where == {"width": value}
    assert type(where["width"]) is type(value)


def test_a_column_that_comes_again_allows_other_values() -> None:
    """Equality with two values at once would find nothing."""
    written = [WrittenCondition("license", "equals", text) for text in ("CC0", "MIT")]

    assert read_conditions(written, COLUMNS) == {"license": {"in": ["CC0", "MIT"]}}


def test_conditions_on_a_column_are_put_together() -> None:
    """A range has two ends."""
    written = [WrittenCondition("width", "min", "1"), WrittenCondition("width", "max", "2.5")]

    assert read_conditions(written, COLUMNS) == {"width": {"min": 1, "max": 2.5}}


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (("widht", "equals", "1"), "did you mean width"),
        (("nothing", "equals", "1"), "it has is_photo, license"),
        (("width", "equals", "wide"), "'wide' is not one"),
        (("width", "equals", "nan"), "'nan' is not one"),
        (("width", "equals", "1_000"), "'1_000' is not one"),
        (("width", "contains", "1"), "contains is for text"),
        (("is_photo", "equals", "yes"), "true or false, not 'yes'"),
        (("is_photo", "min", "true"), "no order"),
        (("license", "contains", ""), "needs a text"),
    ],
)
def test_what_does_not_fit_is_refused(condition: Any, message: str) -> None:
    """The message names the column and what it has."""
    with pytest.raises(FilterError, match=message):
        read_conditions([WrittenCondition(*condition)], COLUMNS)


def test_two_limits_of_one_kind_are_refused() -> None:
    """One of them would be ignored."""
    with pytest.raises(FilterError, match="two conditions of kind min"):
        read_conditions(
            [WrittenCondition("width", "min", "1"), WrittenCondition("width", "min", "2")], COLUMNS
        )


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ([], "is an object"),
        ({"nothing": 1}, "no column 'nothing'"),
        ({"width": "640"}, "'640' is not of that kind"),
        ({"width": True}, "True is not of that kind"),
        ({"width": math.inf}, "inf is not of that kind"),
        ({"license": 7}, "7 is not of that kind"),
        ({"width": {}}, "no condition"),
        ({"width": {"over": 1}}, "unknown condition 'over'"),
        ({"width": {"min": None}}, "min needs a value"),
        ({"license": {"in": "CC0"}}, "in needs a list"),
        ({"license": {"in": ["CC0", 1]}}, "1 is not of that kind"),
    ],
)
def test_a_filter_that_does_not_fit_the_store_is_refused(where: Any, message: str) -> None:
    """A filter of a program or a file is checked like one that was typed."""
    with pytest.raises(FilterError, match=message):
        check_filter(where, COLUMNS)


def test_a_column_that_is_filtered_in_two_places_is_refused() -> None:
    """Neither place wins silently."""
    assert merged({"width": 1}, {"license": "CC0"}) == {"width": 1, "license": "CC0"}
    with pytest.raises(FilterError, match="'width' is filtered in two places"):
        merged({"width": 1}, {"width": 2})
