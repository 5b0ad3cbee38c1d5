"""Compares an answer with what a case expects of it, and expands the shorthands of `cases.yaml`.

The keys of an expected object must be there; others are ignored. Lists are compared element by element,
fractions within a tolerance, all else exactly. An object whose first key starts with `$` is a check of its
own; `_CHECKS` has them all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Any: values are JSON.
Golden = Mapping[str, Any]

TOLERANCE = 1e-4
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def expanded(value: Any, variables: Mapping[str, Any]) -> Any:
    """Returns a value of a case with `${name}` replaced, and `$repeat` written out.

    `{$repeat: {count: 3, value: "text {n}"}}` is a list of three values, in which `{n}` is 0, 1 and 2.

    Raises:
        KeyError: A variable is not known.
    """
    if isinstance(value, str):
        return _substituted(value, variables)
    if isinstance(value, list):
        return [expanded(each, variables) for each in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"$repeat"}:
        repeat = value["$repeat"]
        return [
            expanded(_numbered(repeat["value"], number), variables)
            for number in range(repeat.get("start", 0), repeat.get("start", 0) + repeat["count"])
        ]
    return {key: expanded(each, variables) for key, each in value.items()}


def differences(expected: Any, actual: Any, golden: Golden, path: str = "answer") -> list[str]:
    """Returns what is not as expected, a line each; none if all is."""
    return list(_differences(expected, actual, golden, path))


def _substituted(text: str, variables: Mapping[str, Any]) -> Any:
    if whole := _VARIABLE.fullmatch(text):
        return variables[whole[1]]
    return _VARIABLE.sub(lambda match: str(variables[match[1]]), text)


def _numbered(value: Any, number: int) -> Any:
    if isinstance(value, str):
        return value.replace("{n}", str(number))
    if isinstance(value, list):
        return [_numbered(each, number) for each in value]
    if isinstance(value, dict):
        return {key: _numbered(each, number) for key, each in value.items()}
    return value


def _differences(expected: Any, actual: Any, golden: Golden, path: str) -> Iterator[str]:
    if isinstance(expected, dict):
        name = next(iter(expected), "")
        if name.startswith("$"):
            yield from _CHECKS[name](expected, actual, golden, path)
        elif not isinstance(actual, dict):
            yield f"{path} is {_short(actual)}, not an object"
        else:
            for key, value in expected.items():
                if key in actual:
                    yield from _differences(value, actual[key], golden, f"{path}.{key}")
                else:
                    yield f"{path} has no {key}: {_short(actual)}"
    elif isinstance(expected, list):
        yield from _lists(expected, actual, golden, path)
    elif not _is_equal(expected, actual):
        yield f"{path} is {_short(actual)}, expected {_short(expected)}"


def _lists(expected: list[Any], actual: Any, golden: Golden, path: str) -> Iterator[str]:
    if not isinstance(actual, list) or len(actual) != len(expected):
        yield f"{path} is {_short(actual)}, expected {len(expected)} elements"
        return
    for position, (one, other) in enumerate(zip(expected, actual, strict=True)):
        yield from _differences(one, other, golden, f"{path}[{position}]")


def _is_equal(expected: Any, actual: Any, tolerance: float = TOLERANCE) -> bool:
    if isinstance(expected, float):
        return _is_number(actual) and math.isclose(expected, actual, rel_tol=0, abs_tol=tolerance)
    if isinstance(expected, bool) or expected is None:
        return actual is expected
    if isinstance(expected, int):  # some languages print every number as a fraction
        return _is_number(actual) and actual == expected
    return bool(expected == actual)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _golden(check: dict[str, Any], actual: Any, golden: Golden, path: str) -> Iterator[str]:
    name, tolerance = check["$golden"], check.get("$tolerance", TOLERANCE)
    wanted: Any = golden
    for key in name.split("/"):
        wanted = wanted[key]
    if isinstance(wanted, float):
        if not _is_equal(wanted, actual, tolerance):
            yield f"{path} is {_short(actual)}, golden {name} is {wanted}, tolerance {tolerance:g}"
    elif not _is_vector(wanted):
        yield from _differences(wanted, actual, golden, path)
    elif not _is_vector(actual) or len(actual) != len(wanted):
        yield f"{path} is {_short(actual)}, expected {len(wanted)} numbers"
    else:
        worst = max(abs(one - other) for one, other in zip(wanted, actual, strict=True))
        if not worst <= tolerance:  # NaN too
            yield f"{path} differs from golden {name} by {worst:.2g}, tolerance {tolerance:g}"


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_number, value))


def _near(check: dict[str, Any], actual: Any, _: Golden, path: str) -> Iterator[str]:
    if not _is_equal(float(check["$near"]), actual, check["$tolerance"]):
        yield f"{path} is {_short(actual)}, expected {check['$near']} within {check['$tolerance']:g}"


def _length(check: dict[str, Any], actual: Any, _: Golden, path: str) -> Iterator[str]:
    if not isinstance(actual, list | str) or len(actual) != check["$length"]:
        yield f"{path} is {_short(actual)}, expected {check['$length']} elements"


def _each(check: dict[str, Any], actual: Any, golden: Golden, path: str) -> Iterator[str]:
    if not isinstance(actual, list) or not actual:
        yield f"{path} is {_short(actual)}, expected a list with elements"
        return
    for position, each in enumerate(actual):
        yield from _differences(check["$each"], each, golden, f"{path}[{position}]")


def _any(check: dict[str, Any], actual: Any, golden: Golden, path: str) -> Iterator[str]:
    found = [differences(each, actual, golden, path) for each in check["$any"]]
    if all(found):
        yield " or ".join(dict.fromkeys(each[0] for each in found))


def _all(check: dict[str, Any], actual: Any, golden: Golden, path: str) -> Iterator[str]:
    for each in check["$all"]:
        yield from _differences(each, actual, golden, path)


def _between(check: dict[str, Any], actual: Any, _: Golden, path: str) -> Iterator[str]:
    low, high = check["$between"]
    if not _is_number(actual) or not (low is None or actual >= low) or not (high is None or actual <= high):
        yield f"{path} is {_short(actual)}, expected from {low} to {high}"


def _matches(check: dict[str, Any], actual: Any, _: Golden, path: str) -> Iterator[str]:
    if not isinstance(actual, str) or not re.search(check["$matches"], actual):
        yield f"{path} is {_short(actual)}, expected a match of {check['$matches']!r}"


def _norm(check: dict[str, Any], actual: Any, _: Golden, path: str) -> Iterator[str]:
    length = math.sqrt(sum(each * each for each in actual)) if isinstance(actual, list) else math.nan
    if not math.isclose(length, check["$norm"], abs_tol=1e-3):
        yield f"{path} has length {length:.4g}, expected {check['$norm']}"


def _ids(check: dict[str, Any], actual: Any, _: Golden, path: str) -> Iterator[str]:
    """Every id once, in any order: nothing lost, nothing answered twice."""
    answered = [each.get("id") for each in actual] if isinstance(actual, list) else []
    lost = [each for each in check["$ids"] if each not in set(answered)]
    twice = sorted({str(each) for each in answered if answered.count(each) > 1})
    unknown = [each for each in answered if each not in set(check["$ids"])]
    for name, ids in (("lost", lost), ("answered twice", twice), ("never sent", unknown)):
        if ids:
            yield f"{path}: {len(ids)} {name}: {_short(ids)}"


_Check = Callable[[dict[str, Any], Any, Golden, str], Iterator[str]]
_CHECKS: dict[str, _Check] = {
    "$golden": _golden,  # the value at that path of golden.json, numbers within $tolerance
    "$near": _near,  # a number, within $tolerance
    "$length": _length,  # number of elements
    "$each": _each,  # every element of a list that has some
    "$any": _any,  # at least one of several
    "$all": _all,  # every one of several
    "$between": _between,  # a number, bounds included; null for no bound
    "$matches": _matches,  # a text, by regular expression
    "$norm": _norm,  # the length of a vector
    "$ids": _ids,  # results of a stream, by id
}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:160]} … ({len(text)} characters)"
