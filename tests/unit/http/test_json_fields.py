"""The typed reader of JSON objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from alignserve_server.errors import InvalidArgument, RequestMalformed
from alignserve_server.http.json_fields import Fields, fields_of


@pytest.mark.parametrize("given", [{}, {"x": None}])
def test_null_is_not_given(given: dict[str, Any]) -> None:
    """Go clients send null for an empty list; others send it for each option that is not set."""
    fields = Fields(given)

    assert "x" not in fields
    assert fields.text("x") is None
    assert fields.flag("x", True)
    assert fields.integer("x") is None
    assert fields.choice("x", ("a",), "b") == "b"
    assert fields.texts("x") == []
    assert "y" not in fields.object_of("x")
    fields.refuse("x", "no")


READERS: list[tuple[Any, Callable[[Fields], Any], str, str]] = [
    (1, lambda fields: fields.text("x"), "a.x", "is a number; send a string"),
    ("true", lambda fields: fields.flag("x"), "a.x", "is a string; send a boolean"),
    (True, lambda fields: fields.integer("x"), "a.x", "is a boolean; send a whole number"),
    (1.5, lambda fields: fields.integer("x"), "a.x", "is a number; send a whole number"),
    (1e300, lambda fields: fields.integer("x"), "a.x", "is a number; send a whole number"),
    (-(1 << 63) - 1, lambda fields: fields.integer("x"), "a.x", "is a number; send a whole number"),
    ("c", lambda fields: fields.choice("x", ("a", "b"), "a"), "a.x", "'c' is unknown; use a or b"),
    ([1], lambda fields: fields.object_of("x"), "a.x", "is a list; send an object"),
    ({}, lambda fields: fields.texts("x"), "a.x", "is an object; send a list"),
    (["a", None], lambda fields: fields.texts("x"), "a.x[1]", "is null; send a string"),
    (["a"], lambda fields: fields.refuse("x", "is not supported"), "a.x", "is not supported"),
]


@pytest.mark.parametrize(("value", "reader", "field", "message"), READERS)
def test_other_types_are_refused_by_path(
    value: Any, reader: Callable[[Fields], Any], field: str, message: str
) -> None:
    """The error names the type that was sent and the one that is expected."""
    with pytest.raises(InvalidArgument) as caught:
        reader(Fields({"x": value}, "a"))

    (violation,) = caught.value.violations
    assert (violation.field, violation.description) == (field, message)


def test_what_a_caller_sent_is_cut() -> None:
    """A megabyte in a message would exceed the limits of headers and logs."""
    with pytest.raises(InvalidArgument) as caught:
        Fields({"x": "y" * 1_000_000}).choice("x", ("a",), "a")

    assert len(caught.value.message) < 200


def test_a_body_is_an_object() -> None:
    """Anything else has no fields."""
    with pytest.raises(RequestMalformed, match="the body is a list; send a JSON object"):
        fields_of([])
