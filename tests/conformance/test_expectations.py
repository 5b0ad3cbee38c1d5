"""What cases expect is compared exactly, and their shorthands are written out."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.expectations import differences, expanded

_GOLDEN = {
    "texts": {"a cat": [0.6, 0.8]},
    "labels": [{"label": "cat", "score": 0.9}],
    "scale": 0.5,
    "bits": "AAE=",
}


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        ({"a": 1}, {"a": 1.0, "b": 2}),
        ([1, "x", None, True], [1, "x", None, True]),
        (0.5, 0.50001),
        ({"$golden": "texts/a cat"}, [0.60001, 0.79999]),
        ({"$golden": "texts/a cat", "$tolerance": 0.1}, [0.65, 0.75]),
        ({"$golden": "labels"}, [{"label": "cat", "label_index": 3, "score": 0.90001}]),
        ({"$golden": "scale"}, 0.5),
        ({"$golden": "bits"}, "AAE="),
        ({"$near": 2, "$tolerance": 0.5}, 2.4),
        ({"$length": 2}, ["a", "b"]),
        ({"$each": {"a": 1}}, [{"a": 1}, {"a": 1, "b": 2}]),
        ({"$any": ["x", None]}, None),
        ({"$all": [{"$length": 1}, ["a"]]}, ["a"]),
        ({"$between": [1, None]}, 7),
        ({"$matches": "^a"}, "abc"),
        ({"$norm": 1.0}, [0.6, 0.8]),
        ({"$ids": ["a", "b"]}, [{"id": "b"}, {"id": "a"}]),
    ],
)
def test_what_is_as_expected_has_no_difference(expected: Any, actual: Any) -> None:
    """Each check accepts what it should."""
    assert differences(expected, actual, _GOLDEN) == []


@pytest.mark.parametrize(
    ("expected", "actual", "difference"),
    [
        ({"a": 1}, {"b": 1}, "answer has no a"),
        ({"a": 1}, None, "answer is None, not an object"),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "answer.a.b is 2, expected 1"),
        ([1, 2], [1], "expected 2 elements"),
        (1, True, "answer is True, expected 1"),
        (1, "1", "answer is '1', expected 1"),
        (False, 0, "answer is 0, expected False"),
        (None, 0, "answer is 0, expected None"),
        (0.5, 0.51, "expected 0.5"),
        ({"$golden": "texts/a cat"}, [0.61, 0.8], "differs from golden texts/a cat by 0.01"),
        ({"$golden": "texts/a cat"}, [float("nan"), 0.8], "differs from golden"),
        ({"$golden": "texts/a cat"}, [0.6], "expected 2 numbers"),
        ({"$golden": "texts/a cat"}, "AAAA", "expected 2 numbers"),
        ({"$golden": "labels"}, [{"label": "dog", "score": 0.9}], "answer[0].label is 'dog'"),
        ({"$golden": "scale"}, 0.6, "golden scale is 0.5"),
        ({"$golden": "bits"}, "AAI=", "expected 'AAE='"),
        ({"$length": 2}, ["a"], "expected 2 elements"),
        ({"$each": 1}, [], "expected a list with elements"),
        ({"$each": 1}, [1, 2], "answer[1] is 2, expected 1"),
        ({"$any": ["x", "y"]}, "z", "expected 'x' or answer is 'z', expected 'y'"),
        ({"$between": [1, 2]}, 3, "from 1 to 2"),
        ({"$matches": "^a"}, None, "expected a match of '^a'"),
        ({"$norm": 1.0}, [3.0], "has length 3"),
        ({"$ids": ["a", "b"]}, [{"id": "a"}], "1 lost: ['b']"),
        ({"$ids": ["a"]}, [{"id": "a"}, {"id": "a"}], "1 answered twice: ['a']"),
        ({"$ids": ["a"]}, [{"id": "a"}, {"id": "c"}], "1 never sent: ['c']"),
    ],
)
def test_what_differs_is_named(expected: Any, actual: Any, difference: str) -> None:
    """Each check refuses what it should, and says where."""
    assert difference in "; ".join(differences(expected, actual, _GOLDEN))


def test_variables_are_replaced_whole_or_within_a_text() -> None:
    """A whole value keeps its type."""
    given = {"target": "${target}", "path": "${photos}/cat.jpg", "count": "${count}"}

    found = expanded(given, {"target": "h:1", "photos": "/p", "count": 3})

    assert found == {"target": "h:1", "path": "/p/cat.jpg", "count": 3}


def test_an_unknown_variable_is_an_error() -> None:
    """A misspelt name must not reach a driver."""
    with pytest.raises(KeyError, match="phtos"):
        expanded({"path": "${phtos}/cat.jpg"}, {})


def test_repeated_values_are_numbered() -> None:
    """Numbers are put into every text of the value."""
    given = {"$repeat": {"count": 2, "value": {"id": "{n}", "text": "text {n} of {label}"}}}

    assert expanded(given, {}) == [
        {"id": "0", "text": "text 0 of {label}"},
        {"id": "1", "text": "text 1 of {label}"},
    ]
