"""The parameters of a request, an input or an output: read by name and type, or refused."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from alignserve_server.errors import InvalidArgument, TemplateInvalid
from alignserve_server.kserve.problems import unknown

_SEQUENCES = frozenset({"sequence_id", "sequence_start", "sequence_end"})
_MAX_JSON_CHARACTERS = 1 << 18  # parsed in a few milliseconds, whatever they are
_SHARED_MEMORY = "shared_memory_"  # the beginning of `shared_memory_region` and others

# Triton's clients count from 1, the most urgent; 0 is the default.
PRIORITIES = {0: None, 1: "interactive", 2: "bulk"}


class Parameters:
    """Parameters whose names have been checked."""

    def __init__(self, given: Mapping[str, Any], known: Collection[str], path: str = "parameters") -> None:
        """Checks the names.

        Args:
            given: `InferParameter` by name.
            known: The names that the reader knows.
            path: What errors call the parameters.

        Raises:
            InvalidArgument: A name is unknown, or that of an extension that the server does not have.
        """
        self._given = given
        self._path = path
        for name in sorted(given):
            if name not in known:
                raise _refusal(name, known, path)

    def text(self, name: str) -> str | None:
        """Returns a string; None if it is not given."""
        value = self._read(name, ("string_param",), "a string")
        return None if value is None else str(value)

    def flag(self, name: str) -> bool:
        """Returns a boolean, which is false by default."""
        return bool(self._read(name, ("bool_param",), "a boolean"))

    def count(self, name: str) -> int:
        """Returns an integer of at least 0, which is the default."""
        value = self._read(name, ("int64_param", "uint64_param"), "an integer") or 0
        if value < 0:
            raise InvalidArgument.at(f"{self._path}.{name}", f"{value} is negative; send 0 or more")
        return int(value)

    def seconds(self, name: str) -> float | None:
        """Returns a time that was sent in microseconds; None if it is 0 or not given."""
        return self.count(name) / 1e6 or None

    def priority(self, name: str) -> str | None:
        """Returns the name of a priority that was sent as a number; None for the caller's default."""
        number = self.count(name)
        if number not in PRIORITIES:
            raise InvalidArgument.at(
                f"{self._path}.{name}", f"{number} is unknown; send 1 for interactive or 2 for bulk work"
            )
        return PRIORITIES[number]

    def texts(self, name: str) -> list[str]:
        """Returns a list of strings, which was sent as a JSON array."""
        value = self.text(name)
        if value is None:
            return []
        if len(value) > _MAX_JSON_CHARACTERS:
            raise TemplateInvalid.at(
                f"{self._path}.{name}", f"{len(value)} characters, limit {_MAX_JSON_CHARACTERS}; send fewer"
            )
        try:
            texts = json.loads(value)
        except (ValueError, RecursionError):
            texts = None
        if not isinstance(texts, list) or not all(map(_is_text, texts)):
            raise TemplateInvalid.at(
                f"{self._path}.{name}", 'send a JSON array of strings, such as ["a photo of a {label}"]'
            )
        return texts

    def _read(self, name: str, kinds: Collection[str], expected: str) -> Any:
        kind = self._given[name].WhichOneof("parameter_choice") if name in self._given else None
        if kind is None:
            return None
        if kind not in kinds:
            raise InvalidArgument.at(
                f"{self._path}.{name}", f"{kind} is not its type; send {expected} in {' or '.join(kinds)}"
            )
        return getattr(self._given[name], kind)


def _is_text(value: object) -> bool:
    """Returns whether a value of JSON is a string without lone surrogates, which have no UTF-8."""
    return isinstance(value, str) and value.encode(errors="ignore").decode() == value


def _refusal(name: str, known: Collection[str], path: str) -> InvalidArgument:
    if name in _SEQUENCES:
        return InvalidArgument.at(f"{path}.{name}", "models have no sequences; leave it out")
    if name.startswith(_SHARED_MEMORY):
        return InvalidArgument.at(
            path, "shared memory is not supported; send and receive the tensors themselves"
        )
    return InvalidArgument.at(path, unknown("parameter", name, known))
