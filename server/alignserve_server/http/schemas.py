"""JSON Schemas that several dialects share."""

from __future__ import annotations

from typing import Any

from alignserve_server.http.embedding import MAX_INPUTS

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


def record(required: tuple[str, ...] = (), **properties: JsonSchema) -> JsonSchema:
    """Returns the schema of an object, whose other fields are ignored."""
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


TEXT: JsonSchema = {"type": "string"}
FLAG: JsonSchema = {"type": "boolean"}
NUMBER: JsonSchema = {"type": "number"}
WHOLE_NUMBER: JsonSchema = {"type": "integer"}
PROMPT: JsonSchema = {"type": "string", "pattern": r"\S", "description": "a text that is not blank"}
IMAGE: JsonSchema = {"type": "string", "description": "an image file in base64, or as a data URI"}
IMAGE_URL: JsonSchema = one_of(IMAGE, record(("url",), url=IMAGE))
PART: JsonSchema = one_of(
    record(("text",), text=PROMPT),
    record(("image",), image=IMAGE_URL),
    record(("image_url",), image_url=IMAGE_URL),
)
CONTENT: JsonSchema = one_of(PROMPT, {**list_of(PART), "maxItems": 1})
INPUT: JsonSchema = one_of(PROMPT, PART, record(("content",), content=CONTENT))
INPUTS: JsonSchema = one_of(INPUT, list_of(INPUT))
MESSAGES: JsonSchema = list_of(record(role=TEXT, content=CONTENT))
TRUNCATE: JsonSchema = one_of(FLAG, enum("NONE", "END"))
VECTOR: JsonSchema = {"type": "array", "items": NUMBER}
TEXTS: JsonSchema = one_of(PROMPT, list_of(PROMPT))
IMAGES: JsonSchema = one_of(IMAGE, list_of(IMAGE))
LABELS: JsonSchema = one_of(list_of(PROMPT), {**PROMPT, "description": "labels separated by commas"})
TEMPLATE: JsonSchema = {"type": "string", "pattern": r"^[^{}]*\{\}[^{}]*$"}
