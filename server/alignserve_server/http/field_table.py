"""The fields of a dialect's requests: one table for its page, its schema and its tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Schema = Mapping[str, Any]  # JSON Schema 2020-12

Treatment = Literal["read", "ignored", "refused"]


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a request. A field without a row is ignored."""

    name: str  # path from the request, such as parameters.top_k
    treatment: Treatment
    meaning: str  # what it does; of a refused field, which values are refused
    schema: Schema  # of values that are not refused
    example: Any  # that the dialect reads, ignores or refuses
    is_required: bool = False

    @property
    def optional_schema(self) -> Schema:
        """The schema, with null for a field that may be absent."""
        return self.schema if self.is_required else {"anyOf": [self.schema, {"type": "null"}]}


def read(name: str, meaning: str, schema: Schema, example: Any, *, required: bool = False) -> Field:
    """Returns a field that has the meaning that its dialect gives it."""
    return Field(name, "read", meaning, schema, example, required)


def ignored(name: str, meaning: str, example: Any) -> Field:
    """Returns a field that changes nothing."""
    return Field(name, "ignored", meaning, {}, example)


def refused(name: str, meaning: str, example: Any, schema: Schema | None = None) -> Field:
    """Returns a field that is refused, unless it is absent, empty or fits the schema."""
    return Field(name, "refused", meaning, schema or {"type": "null"}, example)


def request_schema(fields: Iterable[Field]) -> dict[str, Any]:
    """Returns the schema of a request with these fields."""
    root: dict[str, Any] = {"type": "object", "properties": {}}
    for field in fields:
        *parents, name = field.name.split(".")
        at = root
        for parent in parents:
            at = _object_in(at["properties"].setdefault(parent, {"anyOf": [{"type": "object", "properties": {}}, {"type": "null"}]}))
        at["properties"][name] = {**field.optional_schema, "description": field.meaning}
        if field.is_required:
            at.setdefault("required", []).append(name)
    return root


def _object_in(schema: dict[str, Any]) -> dict[str, Any]:
    return schema["anyOf"][0] if "anyOf" in schema else schema
