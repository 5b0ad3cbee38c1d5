"""Error messages for settings: where a value was given, which values are valid, and the likely correction."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignserve_server.settings.sources import Given, nearest

_EXPECTED = {  # by pydantic's type of error
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_unicode": "must be text in UTF-8",
    "path_type": "must be a path",
    "greater_than_equal": "must be {ge} or more",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be {le} or less",
    "literal_error": "must be {expected}",
    "value_error": "{error}",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """An error in one setting, or in several that contradict each other."""

    names: tuple[str, ...]
    message: str

    def __str__(self) -> str:
        return self.message


class SettingsError(ValueError):
    """Settings are invalid; the message has a line for each problem."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


def problem_with(name: str, given: Given, message: str, *, is_secret: bool = False) -> Problem:
    """Returns the problem of a value, with its place, and with the value itself unless it is secret."""
    return Problem((name,), f"{given.place if is_secret else given}: {message}")


def unknown(name: str, given: Given, names: Collection[str]) -> Problem:
    """Returns the problem of a name that is not a setting."""
    meant = nearest(name, names)
    return problem_with(name, given, f"unknown setting{f'; did you mean {meant}?' if meant else ''}")


def expectation(error: Mapping[str, Any]) -> str:
    """Returns what a value must be, given pydantic's error."""
    template = _EXPECTED.get(error["type"])
    if template is None:
        return str(error["msg"])
    words = template.format(**error.get("ctx", {}))
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        meant = nearest(error["input"], re.findall(r"'(\w+)'", words))
        words += f"; did you mean {meant}?" if meant else ""
    return words


def contradiction(message: str, given: Mapping[str, Given]) -> Problem:
    """Returns the problem of values that contradict each other, with the places where they were given."""
    names = tuple(name for name in dict.fromkeys(re.findall(r"\w+", message)) if name in given)
    places = ", ".join(given[name].place for name in names)
    return Problem(names, f"{message} (given: {places})" if places else message)
