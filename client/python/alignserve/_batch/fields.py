"""Reads JSON objects field by field, as the HTTP port does. `null` means that a field is not given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from alignserve._batch.refusals import Refusal

_MAX_SHOWN_CHARACTERS = 60
_MAX_INTEGER = (1 << 63) - 1  # larger numbers would fill a message with digits

_KINDS: dict[type, str] = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def kind_of(value: object) -> str:
    """Returns what a JSON value is, for a message."""
    return _KINDS[type(value)]


def shown(text: str) -> str:
    """Returns the start of a text of the caller, quoted, for a message."""
    return repr(text if len(text) <= _MAX_SHOWN_CHARACTERS else f"{text[:_MAX_SHOWN_CHARACTERS]}…")


class Fields:
    """The fields of a JSON object. For other types, methods raise `Refusal` with the field's path."""

    def __init__(self, values: Mapping[str, object], path: str = "") -> None:
        """Wraps an object that is at `path` of its document; "" is the document itself."""
        self._values = values
        self._path = path

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def value(self, name: str) -> object:
        """Returns a field of any type; None if it is not given."""
        return self._values.get(name)

    def path_of(self, name: str) -> str:
        """Returns what messages call a field."""
        return f"{self._path}.{name}" if self._path else name

    def text(self, name: str) -> str | None:
        """Returns a string."""
        return as_text(self.value(name), self.path_of(name)) if name in self else None

    def flag(self, name: str, default: bool = False) -> bool:
        """Returns a boolean."""
        value = self.value(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise wrong_type(self.path_of(name), "a boolean", value)
        return value

    def integer(self, name: str) -> int | None:
        """Returns a whole number, which may be written as `3.0`."""
        value = self.value(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(self.path_of(name), "a whole number", value)
        if abs(value) > _MAX_INTEGER or value != int(value):
            raise wrong_type(self.path_of(name), "a whole number", value)
        return int(value)

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        """Returns one of several strings."""
        value = self.text(name)
        if value is None:
            return default
        if value not in choices:
            raise Refusal.at(self.path_of(name), f"{shown(value)} is unknown; use {' or '.join(choices)}")
        return value


def as_text(value: object, path: str) -> str:
    """Returns a value that must be a string."""
    if not isinstance(value, str):
        raise wrong_type(path, "a string", value)
    return value


def as_object(value: object, path: str) -> Fields:
    """Returns a value that must be an object."""
    if not isinstance(value, dict):
        raise wrong_type(path, "an object", value)
    return Fields(value, path)


def entries_of(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Yields the path and value of each entry of a value that must be a list."""
    if not isinstance(value, list):
        raise wrong_type(path, "a list", value)
    return ((f"{path}[{position}]", entry) for position, entry in enumerate(value))


def wrong_type(path: str, expected: str, value: object) -> Refusal:
    """Returns the refusal of a value of another type."""
    return Refusal.at(path, f"is {kind_of(value)}; send {expected}")
