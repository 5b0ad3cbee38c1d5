"""Parameters are read by name and type, and refused otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from alignserve_server.errors import InvalidArgument, TemplateInvalid
from alignserve_server.kserve.messages import message
from alignserve_server.kserve.parameters import Parameters

InferParameter: Any = message("InferParameter")


def parameters(**kinds: dict[str, Any]) -> Parameters:
    return Parameters({name: InferParameter(**kind) for name, kind in kinds.items()}, {"a", "b"})


def test_a_parameter_without_a_value_is_not_given() -> None:
    """As when a field is null in other protocols."""
    empty = parameters(a={})

    assert empty.text("a") is None
    assert empty.flag("a") is False
    assert empty.count("a") == 0
    assert empty.seconds("a") is None
    assert empty.texts("a") == []


@pytest.mark.parametrize("kind", ["int64_param", "uint64_param"])
def test_integers_are_of_either_type(kind: str) -> None:
    """tritonclient sends a priority as uint64, and other clients as int64."""
    assert parameters(a={kind: 2}).count("a") == 2
    assert parameters(a={kind: 2}).priority("a") == "bulk"


def test_zero_stands_for_the_default() -> None:
    """As in Triton: a timeout of 0 is none, and priority 0 is the default."""
    zero = parameters(a={"int64_param": 0})

    assert zero.seconds("a") is None
    assert zero.priority("a") is None


def test_times_are_microseconds() -> None:
    """The protocol's unit for timeouts."""
    assert parameters(a={"int64_param": 1_500_000}).seconds("a") == 1.5


@pytest.mark.parametrize(
    "value",
    [
        '"a {label}"',
        "[1]",
        "[null]",
        "{}",
        "[",
        "[" * 100_000,
        "1" * 300_000,
        '["\\ud800',
        '["\\ud800"]',
        "NaN",
        "",
    ],
    ids=lambda value: value[:10],
)
def test_lists_that_are_none_are_refused(value: str) -> None:
    """Whatever the string has in it, of whatever depth."""
    with pytest.raises(TemplateInvalid) as caught:
        parameters(a={"string_param": value}).texts("a")

    assert caught.value.message.startswith("parameters.a: ")


def test_lists_are_arrays_of_strings() -> None:
    """Written in JSON, since a parameter has one value."""
    assert parameters(a={"string_param": '["x {label}", "y: {label}"]'}).texts("a") == [
        "x {label}",
        "y: {label}",
    ]


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    """So that a misspelled parameter is not ignored."""
    with pytest.raises(InvalidArgument) as caught:
        parameters(c={"bool_param": True})

    assert "unknown parameter 'c'" in caught.value.message
    assert "a, b" in caught.value.message
