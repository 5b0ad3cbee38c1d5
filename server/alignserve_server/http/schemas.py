"""JSON Schemas that several dialects share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from alignserve_server.http.inputs import MAX_INPUTS

JsonSchema = dict[str, Any]


def enum(*values: str) -> JsonSchema:
    """Returns the schema of one of several strings."""
    return {"type": "string", "enum": list(values)}


def list_of(items: JsonSchema, limit: int = MAX_INPUTS, minimum: int = 1) -> JsonSchema:
    """Returns the schema of a list."""
    return {"type": "array", "items": items, "minItems": minimum, "maxItems": limit}


def one_of(*schemas: JsonSchema) -> JsonSchema:
    """Returns the schema of a value that fits any of several."""
    return {"anyOf": list(schemas)}


def record(required: tuple[str, ...] = (), /, **properties: JsonSchema) -> JsonSchema:
    """Returns the schema of an object, whose other fields are ignored."""
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def only(name: str, alternatives: Iterable[str]) -> JsonSchema:
    """Returns the schema of an object in which one of several fields is given, and the others are not."""
    others = {other: {"type": "null"} for other in alternatives if other != name}
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}, **others}}


BASE64_PATTERN = r"^([A-Za-z0-9+/_-]{4})*[A-Za-z0-9+/_-]{2,4}={0,2}$"

TEXT: JsonSchema = {"type": "string"}
FLAG: JsonSchema = {"type": "boolean"}
NUMBER: JsonSchema = {"type": "number"}
WHOLE_NUMBER: JsonSchema = {"type": "integer"}
PROMPT: JsonSchema = {"type": "string", "pattern": r"\S", "description": "a text that is not blank"}
IMAGE: JsonSchema = {
    "type": "string",
    "pattern": r"^\s*(data:image/[a-z+.-]+;base64,)?\s*"
    r"(([A-Za-z0-9+/_-]\s*){4})*([A-Za-z0-9+/_-]\s*){2,4}(=\s*){0,2}$",
    "description": "an image file in base64, or as a data URI",
}
IMAGE_URL: JsonSchema = one_of(IMAGE, record(("url",), url=IMAGE))
PART: JsonSchema = one_of(
    record(("text",), text=PROMPT),
    record(("image",), image=IMAGE_URL),
    record(("image_url",), image_url=IMAGE_URL),
)
CONTENT: JsonSchema = one_of(PROMPT, {**list_of(PART), "maxItems": 1})
INPUT: JsonSchema = one_of(PROMPT, PART, record(("content",), content=CONTENT))
INPUTS: JsonSchema = one_of(INPUT, list_of(INPUT))
MESSAGES: JsonSchema = list_of(record(("content",), content=CONTENT), limit=1)
DIMENSIONS: JsonSchema = {"type": "integer", "enum": [0]}  # the model's is accepted too
RIGHT: JsonSchema = {"type": "string", "pattern": "^[Rr]ight$"}  # generators confuse such names in an enum
TRUNCATE: JsonSchema = one_of(FLAG, enum("NONE", "END"))
VECTOR: JsonSchema = {"type": "array", "items": NUMBER}
TEXTS: JsonSchema = one_of(PROMPT, list_of(PROMPT))
IMAGE_INPUTS: JsonSchema = one_of(IMAGE, PART, list_of(one_of(IMAGE, PART)))
IMAGES: JsonSchema = one_of(IMAGE, list_of(IMAGE))
LABELS: JsonSchema = one_of(
    {"type": "array", "items": PROMPT, "minItems": 1},
    {**PROMPT, "description": "labels separated by commas"},
)
TEMPLATE: JsonSchema = {"type": "string", "pattern": r"^[^{}]*\{\}[^{}]*$"}
