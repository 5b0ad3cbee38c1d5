"""JSON Schemas of the messages of `alignserve.v1`, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from alignserve_server.http import schemas
from alignserve_server.http.openapi import Operation
from alignserve_server.http.schemas import JsonSchema
from alignserve_server.rpc.methods import API, SERVICE

_BASE64 = {"type": "string", "pattern": schemas.BASE64_PATTERN}
_INT32 = {"type": "integer", "minimum": -(1 << 31), "maximum": (1 << 31) - 1}

# What the proto says about required fields and their values, by message and JSON name.
_TIGHTER: Mapping[str, JsonSchema] = {
    "EmbedImageRequest.images": {"minItems": 1},
    "EmbedTextRequest.texts": {"minItems": 1, "items": schemas.PROMPT},
    "ClassifyRequest.images": {"minItems": 1},
    "ClassifyRequest.labels": {"minItems": 1, "items": schemas.PROMPT},
    "ClassifyRequest.promptTemplates": {"items": {"type": "string", "pattern": r"^[^{}]*\{label\}[^{}]*$"}},
    "ClassifyRequest.topK": {"minimum": 0},
    "CompareRequest.pairs": {"minItems": 1},
    "EmbedQueryRequest.queries": {"minItems": 1},
    "ComposedQuery.terms": {"minItems": 1},
    "ImageTextPair.image": {},
    "ImageTextPair.text": schemas.PROMPT,
    "QueryTerm.text": schemas.PROMPT,
    "QueryTerm.weight": {"minimum": 0.01, "maximum": 1000},
    "Pixels.height": {"minimum": 1},
    "Pixels.width": {"minimum": 1},
    "Pixels.data": {},
}
_OPTIONAL = frozenset(
    {"ClassifyRequest.promptTemplates", "ClassifyRequest.topK", "QueryTerm.text", "QueryTerm.weight"}
)
_QUERY = {
    "encoding": schemas.enum("json"),
    "message": {"type": "string", "contentMediaType": "application/json"},
}
_SUMMARIES = {
    "EmbedImage": "Embed images",
    "EmbedText": "Embed texts",
    "Classify": "Score images against labels",
    "Compare": "Compare images with texts, pair by pair",
    "EmbedQuery": "Embed queries that are composed of images and texts",
    "GetModelInfo": "Describe the model and the limits",
}


class ConnectDescription:
    """The unary methods as the Connect protocol has them in JSON."""

    name = "connect"
    error_schema = schemas.record(
        ("code",),
        code=schemas.TEXT,
        message=schemas.TEXT,
        details={
            "type": "array",
            "items": schemas.record(
                ("type", "value"), type=schemas.TEXT, value=schemas.TEXT, debug={"type": "object"}
            ),
        },
    )

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All unary methods."""
        return tuple(
            operation
            for method in API.methods
            if not (method.client_streaming or method.server_streaming)
            for operation in _operations(method)
        )


def _operations(method: MethodDescriptor) -> Iterator[Operation]:
    path, summary = f"/{SERVICE}/{method.name}", _SUMMARIES[method.name]
    response = response_schema(method.output_type)
    yield Operation(path, "POST", summary, response, request_schema(method.input_type))
    yield Operation(path, "GET", f"{summary}, with the request in the query", response, query=_QUERY)


def request_schema(message: Descriptor) -> JsonSchema:
    """Returns the schema of a message that a caller sends. `null` is the same as an absent field."""
    properties: dict[str, JsonSchema] = {}
    required: list[str] = []
    for field in message.fields:
        path = f"{message.name}.{field.json_name}"
        schema = {**_field(field, request_schema), **_TIGHTER.get(path, {})}
        if path in _TIGHTER and path not in _OPTIONAL:
            required.append(field.json_name)
            properties[field.json_name] = schema
        else:
            properties[field.json_name] = {"anyOf": [schema, {"type": "null"}]}
    choices = [
        [field.json_name for field in oneof.fields]
        for oneof in message.oneofs
        if len(oneof.fields) > 1  # `optional` is a oneof of one field
    ]
    schema = schemas.record(tuple(required), **properties)
    if choices:
        (names,) = choices
        schema["oneOf"] = [schemas.only(name, names) for name in names]
    return schema


def response_schema(message: Descriptor) -> JsonSchema:
    """Returns the schema of a message that the server sends."""
    if message.full_name == "google.protobuf.Duration":
        return {"type": "string", "pattern": r"^-?[0-9.]+s$"}
    return schemas.record(**{field.json_name: _field(field, response_schema) for field in message.fields})


def _field(field: FieldDescriptor, message_schema: Callable[[Descriptor], JsonSchema]) -> JsonSchema:
    if field.message_type is not None:
        schema = message_schema(field.message_type)
    elif field.enum_type is not None:
        numbers = {"type": "integer", "enum": list(field.enum_type.values_by_number)}
        schema = schemas.one_of(schemas.enum(*field.enum_type.values_by_name), numbers)
    else:
        schema = _SCALARS[field.type]
    return {"type": "array", "items": schema} if field.is_repeated else schema


_SCALARS: Mapping[int, JsonSchema] = {
    FieldDescriptor.TYPE_STRING: schemas.TEXT,
    FieldDescriptor.TYPE_BYTES: _BASE64,
    FieldDescriptor.TYPE_BOOL: schemas.FLAG,
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_INT64: {"type": "string", "pattern": "^-?[0-9]+$"},
    FieldDescriptor.TYPE_FLOAT: schemas.NUMBER,
}
