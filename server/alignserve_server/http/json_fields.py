"""Reads JSON objects field by field. `null` means that a field is not given, whatever its type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from alignserve_server.errors import InvalidArgument, RequestMalformed

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


def fields_of(document: object) -> Fields:
    """Returns the fields of a request's document.

    Raises:
        RequestMalformed: It is not an object.
    """
    if not isinstance(document, dict):
        raise RequestMalformed(f"the body is {kind_of(document)}; send a JSON object")
    return Fields(document)


def kind_of(value: object) -> str:
    """Returns what a JSON value is, for a message."""
    return _KINDS.get(type(value), "a value")


def shown(text: str) -> str:
    """Returns the start of what a caller sent, quoted, for a message."""
    cut = text if len(text) <= _MAX_SHOWN_CHARACTERS else f"{text[:_MAX_SHOWN_CHARACTERS]}…"
    return repr(cut)


class Fields:
    """The fields of a JSON object. For other types, methods raise `InvalidArgument` with the field's path."""

    def __init__(self, values: Mapping[str, object], path: str = "") -> None:
        """Wraps an object that is at `path` of its document; "" is the document itself."""
        self.path = path
        self._values = values

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def value(self, name: str) -> object:
        """Returns a field of any type; None if it is not given."""
        return self._values.get(name)

    def path_of(self, name: str) -> str:
        """Returns what errors call a field."""
        return f"{self.path}.{name}" if self.path else name

    def text(self, name: str) -> str | None:
        """Returns a string."""
        value = self._values.get(name)
        return None if value is None else as_text(value, self.path_of(name))

    def flag(self, name: str, default: bool = False) -> bool:
        """Returns a boolean."""
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise wrong_type(self.path_of(name), "a boolean", value)
        return value

    def integer(self, name: str) -> int | None:
        """Returns a whole number, which may be written as `3.0`."""
        value = self._values.get(name)
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
            raise InvalidArgument.at(
                self.path_of(name), f"{shown(value)} is unknown; use {' or '.join(choices)}"
            )
        return value

    def object_of(self, name: str) -> Fields:
        """Returns an object; one without fields if it is not given."""
        value = self._values.get(name)
        return Fields({} if value is None else as_object(value, self.path_of(name)), self.path_of(name))

    def entries(self, name: str) -> Iterator[tuple[str, object]]:
        """Yields the path and value of each entry of a list; none if it is not given."""
        value = self._values.get(name)
        return iter(()) if value is None else entries_of(value, self.path_of(name))

    def texts(self, name: str) -> list[str]:
        """Returns a list of strings; an empty one if it is not given."""
        return [as_text(value, path) for path, value in self.entries(name)]

    def refuse(self, name: str, why: str) -> None:
        """Refuses the request if a field is given.

        Raises:
            InvalidArgument: It is.
        """
        if name in self:
            raise InvalidArgument.at(self.path_of(name), why)


def as_text(value: object, path: str) -> str:
    """Returns a value that must be a string."""
    if not isinstance(value, str):
        raise wrong_type(path, "a string", value)
    return value


def as_object(value: object, path: str) -> Mapping[str, object]:
    """Returns a value that must be an object."""
    if not isinstance(value, dict):
        raise wrong_type(path, "an object", value)
    return value


def entries_of(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Yields the path and value of each entry of a value that must be a list."""
    if not isinstance(value, list):
        raise wrong_type(path, "a list", value)
    return ((f"{path}[{position}]", entry) for position, entry in enumerate(value))


def wrong_type(path: str, expected: str, value: object) -> InvalidArgument:
    """Returns the error for a value of another type."""
    return InvalidArgument.at(path, f"is {kind_of(value)}; send {expected}")
