"""Cohere's embeddings, version 2."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

from alignserve_server.api import CallScope, MethodRules, ModelInfo, Scope, Service, pack_signs, quantize_int8
from alignserve_server.errors import InvalidArgument, RequestEmpty
from alignserve_server.http import schemas
from alignserve_server.http.answer import Answer
from alignserve_server.http.call import FIELD_PATHS
from alignserve_server.http.embedding import EmbeddedInputs, EmbeddingOptions, embed_inputs
from alignserve_server.http.embedding_fields import check_dimensions, check_model, truncates
from alignserve_server.http.endpoint import Endpoint
from alignserve_server.http.field_table import ignored, read, refused, request_schema
from alignserve_server.http.inputs import MAX_INPUTS, ImageInput, Input, TextInput, input_entries, item
from alignserve_server.http.json_fields import Fields, as_object, as_text, fields_of, shown
from alignserve_server.http.openapi import Operation
from alignserve_server.http.request import HttpRequest
from alignserve_server.http.status import HttpError
from alignserve_server.http.timeouts import TIMEOUT_MS
from alignserve_server.http.vectors import (
    BASE64,
    FLOATS,
    Row,
    VectorFormat,
    json_list,
    json_object,
    json_value,
)

FIELDS = (
    read("texts", f"1 to {MAX_INPUTS} texts", schemas.list_of(schemas.PROMPT), ["a cat"]),
    read(
        "images",
        "instead of `texts`: images as data URIs or in base64",
        schemas.list_of(schemas.IMAGE),
        ["aW1hZ2U="],
    ),
    read(
        "inputs",
        "instead of `texts`: objects whose `content` has one text or one image",
        schemas.list_of(schemas.record(("content",), content=schemas.CONTENT)),
        [{"content": [{"type": "text", "text": "a cat"}]}],
    ),
    read(
        "model",
        "the model's id, its last part, or nothing; another one is answered with 404",
        schemas.TEXT,
        "",
    ),
    read(
        "embedding_types",
        "`float` (default), `int8`, `uint8`, `binary`, `ubinary`, `base64`; several return each",
        {"type": "array", "items": schemas.enum("float", "int8", "uint8", "binary", "ubinary", "base64")},
        ["float", "int8"],
    ),
    read(
        "truncate",
        "`END` (default) cuts texts that are too long; `NONE` refuses them",
        schemas.TRUNCATE,
        "END",
    ),
    ignored("input_type", "queries and documents are embedded in the same way", "search_query"),
    ignored("priority", "see the header `alignserve-priority`", 3),
    refused("max_tokens", "always", 16),
    refused("output_dimension", "unless it is the model's, or 0", 3, schemas.DIMENSIONS),
)

_INTEGERS = schemas.list_of({"type": "array", "items": schemas.WHOLE_NUMBER})
_RESPONSE = schemas.record(
    ("id", "embeddings", "texts", "meta"),
    id=schemas.TEXT,
    embeddings=schemas.record(
        float=schemas.list_of(schemas.VECTOR),
        base64=schemas.list_of(schemas.TEXT),
        int8=_INTEGERS,
        uint8=_INTEGERS,
        binary=_INTEGERS,
        ubinary=_INTEGERS,
    ),
    texts=schemas.list_of(schemas.TEXT, minimum=0),
    meta={"type": "object"},
)

_EMBED = MethodRules(scopes=frozenset({Scope.EMBED}))
_SOURCES = ("texts", "images", "inputs")
_API = {"api_version": {"version": "2"}}


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """What a request asks for."""

    inputs: list[Input]
    path: str  # of the inputs
    options: EmbeddingOptions
    types: list[str]


class Cohere:
    """Serves `/v2/embed`."""

    name = "cohere"
    prefixes = ("/v2/",)
    operations = (
        Operation(
            "/v2/embed", "POST", "Embed texts or images", _RESPONSE, request_schema(FIELDS, one_of=_SOURCES)
        ),
    )
    error_schema = schemas.record(
        ("id", "message"), id=schemas.TEXT, message=schemas.TEXT, reason=schemas.TEXT
    )
    timeout_header = TIMEOUT_MS
    paths = FIELD_PATHS

    def __init__(self, service: Service) -> None:
        self._service = service

    def endpoints(self) -> list[Endpoint]:
        """Returns what is served at which path."""
        return [Endpoint("/v2/embed", ("POST",), self, "embed", _EMBED, self._embed)]

    def error(self, error: HttpError) -> Answer:
        """Returns an error as Cohere has it."""
        content = {"id": error.request_id, "message": error.message, "reason": error.reason}
        return Answer.json(content, error.status)

    async def _embed(self, request: HttpRequest, call: CallScope) -> Answer:
        model = self._service.model_info().model
        wanted = read_embed(fields_of(request.json()), model)
        formats = [_FORMATS[name] for name in wanted.types]
        echoed = sum(2 * len(each.text) for each in wanted.inputs if isinstance(each, TextInput))
        found = await embed_inputs(
            self._service,
            wanted.inputs,
            wanted.path,
            call,
            wanted.options,
            request.room,
            lambda dimension: (
                sum(form.row_bytes(dimension) for form in formats) + echoed // len(wanted.inputs)
            ),
        )
        return await Answer.in_parts(write_embed(wanted, found, request.request_id))


def read_embed(fields: Fields, model: ModelInfo) -> EmbedRequest:
    """Reads the body of a request for embeddings.

    Raises:
        InvalidArgument: A field is invalid or not supported.
        ModelUnknown: It names another model.
    """
    check_model(fields.text("model"), model)
    check_dimensions(fields, "output_dimension", model)
    fields.refuse("max_tokens", "is not supported; set truncate to cut texts at the limit of the model")
    given = [name for name in _SOURCES if name in fields]
    if len(given) > 1:
        raise InvalidArgument.at(
            given[1], f"is given along with {given[0]}; send one of {', '.join(_SOURCES)}"
        )
    if not given:
        raise RequestEmpty.at("texts", f"is missing; send one of {', '.join(_SOURCES)}")
    inputs = [
        _READERS[given[0]](value, path) for path, value in input_entries(fields.value(given[0]), given[0])
    ]
    options = EmbeddingOptions(truncate=truncates(fields, "truncate", default=True))
    return EmbedRequest(inputs, given[0], options, _types(fields))


def write_embed(wanted: EmbedRequest, found: EmbeddedInputs, request_id: str) -> Iterator[bytes]:
    """Yields the answer to a request for embeddings, in parts."""
    by_type = [(name, json_list(map(_FORMATS[name].write, found.embeddings))) for name in wanted.types]
    texts = (orjson.dumps(each.text) for each in wanted.inputs if isinstance(each, TextInput))
    units = {"input_tokens": found.token_count, "images": len(found.token_counts) - found.text_count}
    return json_object(
        [
            ("id", json_value(request_id)),
            ("response_type", json_value("embeddings_by_type")),
            ("embeddings", json_object(by_type)),
            ("texts", json_list(texts)),
            ("meta", json_value({**_API, "billed_units": units})),
        ]
    )


def _types(fields: Fields) -> list[str]:
    types = fields.texts("embedding_types") or ["float"]
    for position, name in enumerate(types):
        if name not in _FORMATS:
            raise InvalidArgument.at(
                f"embedding_types[{position}]", f"{shown(name)} is unknown; use one of {', '.join(_FORMATS)}"
            )
    return list(dict.fromkeys(types))


def _input(value: object, path: str) -> Input:
    return item(as_object(value, path), path)


def _integers(row: NDArray[np.integer]) -> bytes:
    return orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)


def _int8(row: Row) -> NDArray[np.int8]:
    integers, _ = quantize_int8(row[np.newaxis])
    return integers.ravel()


def _signs(row: Row) -> NDArray[np.uint8]:
    return pack_signs(row[np.newaxis]).ravel()


_READERS: dict[str, Callable[[object, str], Input]] = {
    "texts": lambda value, path: TextInput(path, as_text(value, path)),
    "images": lambda value, path: ImageInput(path, as_text(value, path)),
    "inputs": _input,
}
_FORMATS = {
    "float": FLOATS,
    "int8": VectorFormat(lambda row: _integers(_int8(row)), lambda dimension: 5 * dimension),
    "uint8": VectorFormat(
        lambda row: _integers((_int8(row).astype(np.int16) + 128).astype(np.uint8)),
        lambda dimension: 4 * dimension,
    ),
    "binary": VectorFormat(
        lambda row: _integers((_signs(row).astype(np.int16) - 128).astype(np.int8)),
        lambda dimension: dimension,
    ),
    "ubinary": VectorFormat(lambda row: _integers(_signs(row)), lambda dimension: dimension),
    "base64": BASE64,
}
