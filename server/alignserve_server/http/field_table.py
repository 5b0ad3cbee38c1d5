"""The fields of a dialect's requests: one table for its page, its schema and its tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from alignserve_server.http.schemas import JsonSchema, only, record

Treatment = Literal["read", "ignored", "refused"]


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a request. A field without a row is ignored."""

    name: str  # path from the request, such as parameters.top_k
    treatment: Treatment
    meaning: str  # what it does; of a refused field, which values are refused
    schema: JsonSchema  # of the values that are not refused
    example: Any  # that is read, ignored or refused
    is_required: bool = False

    @property
    def full_schema(self) -> JsonSchema:
        """The schema, which includes null for a field that may be absent."""
        schema = self.schema if self.is_required else {"anyOf": [self.schema, {"type": "null"}]}
        return {**schema, "description": self.meaning}


def read(name: str, meaning: str, schema: JsonSchema, example: Any, *, required: bool = False) -> Field:
    """Returns a field that has the meaning that its dialect gives it."""
    return Field(name, "read", meaning, schema, example, required)


def ignored(name: str, meaning: str, example: Any) -> Field:
    """Returns a field that changes nothing."""
    return Field(name, "ignored", meaning, {}, example)


def refused(name: str, meaning: str, example: Any, schema: JsonSchema | None = None) -> Field:
    """Returns a field of which only the values of a schema are accepted."""
    return Field(name, "refused", meaning, schema or {"type": "null"}, example)


def request_schema(fields: Iterable[Field], one_of: Sequence[str] = ()) -> JsonSchema:
    """Returns the schema of a request.

    Args:
        fields: Its fields.
        one_of: Fields of which exactly one is given.
    """
    schema, _ = _object_schema([(field.name.split("."), field) for field in fields])
    if one_of:
        schema["oneOf"] = [only(name, one_of) for name in one_of]
    return schema


def _object_schema(fields: Iterable[tuple[Sequence[str], Field]]) -> tuple[JsonSchema, bool]:
    """Returns the schema of an object, and whether it is required, from its fields and their paths in it."""
    properties: dict[str, JsonSchema] = {}
    required: list[str] = []
    inner: dict[str, list[tuple[Sequence[str], Field]]] = {}
    for (name, *rest), field in fields:
        if rest:
            inner.setdefault(name, []).append((rest, field))
            continue
        properties[name] = field.full_schema
        if field.is_required:
            required.append(name)
    for name, below in inner.items():
        schema, is_required = _object_schema(below)
        properties[name] = schema if is_required else {"anyOf": [schema, {"type": "null"}]}
        if is_required:
            required.append(name)
    return record(tuple(required), **properties), bool(required)
