"""OpenAI's embeddings and models, with the forms of images that other servers have added to it.

Those are: data URIs among the inputs (NVIDIA NIM), `modality` (infinity), objects with `text` or `image`
(Jina), and `messages` (vLLM).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from alignserve_server.api import ANY_SCOPE, CallScope, MethodRules, ModelInfo, Scope, Service
from alignserve_server.errors import InvalidArgument, ModelUnknown, RequestEmpty
from alignserve_server.http import schemas
from alignserve_server.http.answer import Answer
from alignserve_server.http.call import FIELD_PATHS
from alignserve_server.http.embedding import EmbeddedInputs, EmbeddingOptions, embed_inputs
from alignserve_server.http.embedding_fields import check_dimensions, check_model, truncates
from alignserve_server.http.endpoint import Endpoint
from alignserve_server.http.field_table import ignored, read, refused, request_schema
from alignserve_server.http.inputs import (
    MAX_INPUTS,
    ImageInput,
    Input,
    TextInput,
    content_parts,
    input_entries,
    item,
    one_or_many,
    only_part,
    text_or_image,
)
from alignserve_server.http.json_fields import Fields, as_object, fields_of, wrong_type
from alignserve_server.http.openapi import Operation
from alignserve_server.http.request import HttpRequest
from alignserve_server.http.status import HttpError
from alignserve_server.http.timeouts import TIMEOUT_MS
from alignserve_server.http.vectors import BASE64, FLOATS, VectorFormat, json_list, json_object, json_value

FIELDS = (
    read(
        "input",
        f"a text, or a list of 1 to {MAX_INPUTS} inputs. A data URI is an image. An object has `text`, "
        "`image` (base64 or a data URI), `image_url` or `content`",
        schemas.INPUTS,
        ["a cat", "a dog"],
    ),
    read(
        "messages",
        "instead of `input`: one chat message, whose content is one text or one image",
        schemas.MESSAGES,
        [{"role": "user", "content": [{"type": "text", "text": "a cat"}]}],
    ),
    read(
        "model",
        "the model's id, its last part, or nothing; another one is answered with 404",
        schemas.TEXT,
        "",
    ),
    read(
        "encoding_format",
        "`float` (default), or `base64` of little-endian float32",
        schemas.enum("float", "base64"),
        "base64",
    ),
    read("embedding_type", "the same, as Jina calls it", schemas.enum("float", "base64"), "base64"),
    read(
        "modality",
        "what all strings in `input` are: `text`, or `image` (base64 or a data URI)",
        schemas.enum("text", "image"),
        "text",
    ),
    read(
        "truncate",
        "`true` or `END` cuts texts that are too long; otherwise they are refused",
        schemas.TRUNCATE,
        "END",
    ),
    read("truncation", "the same, as Voyage calls it", schemas.FLAG, True),
    read("truncate_prompt_tokens", "-1 is the same, as vLLM calls it", {"const": -1}, -1),
    read("normalize", "`false` returns embeddings that are not scaled to length 1", schemas.FLAG, True),
    read("normalized", "the same, as Jina calls it", schemas.FLAG, True),
    ignored("user", "", "somebody"),
    ignored("input_type", "queries and documents are embedded in the same way", "query"),
    ignored("task", "the same", "retrieval.query"),
    refused("dimensions", "unless it is the model's, or 0", 3, schemas.DIMENSIONS),
    refused("output_dimension", "unless it is the model's, or 0", 3, schemas.DIMENSIONS),
    refused("output_dtype", "unless it is `float`", "int8", {"const": "float"}),
    refused("late_chunking", "unless it is `false`", True, {"const": False}),
)

_MODEL = schemas.record(
    ("id", "object", "created", "owned_by"),
    id=schemas.TEXT,
    object={"const": "model"},
    created=schemas.WHOLE_NUMBER,
    owned_by=schemas.TEXT,
)
_LIST = schemas.record(("object", "data"), object={"const": "list"}, data=schemas.list_of(_MODEL))
_EMBEDDING = schemas.record(
    ("object", "index", "embedding"),
    object={"const": "embedding"},
    index=schemas.WHOLE_NUMBER,
    embedding=schemas.one_of(schemas.VECTOR, schemas.TEXT),
)
_EMBEDDINGS = schemas.record(
    ("object", "data", "model", "usage"),
    object={"const": "list"},
    data=schemas.list_of(_EMBEDDING),
    model=schemas.TEXT,
    usage=schemas.record(
        ("prompt_tokens", "total_tokens"),
        prompt_tokens=schemas.WHOLE_NUMBER,
        total_tokens=schemas.WHOLE_NUMBER,
    ),
)
_REQUEST = {
    **request_schema(FIELDS),
    "oneOf": [
        {
            "required": ["input"],
            "properties": {
                "input": {"not": {"type": "null"}},
                "messages": {"type": "null"},
                "modality": {"not": {"const": "image"}},
            },
        },
        {
            "required": ["input", "modality"],
            "properties": {
                "input": schemas.IMAGE_INPUTS,
                "messages": {"type": "null"},
                "modality": {"const": "image"},
            },
        },
        schemas.only("messages", ("input", "messages")),
    ],
}

_EMBED = MethodRules(scopes=frozenset({Scope.EMBED}))
_MODELS = MethodRules(scopes=ANY_SCOPE)

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
_NO_MODEL = "default/not-specified"  # as infinity's client sends it
_FORMATS = {"float": FLOATS, "base64": BASE64}
_STRINGS: dict[str, Callable[[str, str], Input]] = {
    "": text_or_image,
    "text": TextInput,
    "image": ImageInput,
}  # by modality; take path and string


@dataclass(frozen=True, slots=True)
class EmbeddingsRequest:
    """What a request asks for."""

    inputs: list[Input]
    path: str  # of the inputs
    options: EmbeddingOptions
    format: VectorFormat


class OpenAI:
    """Serves OpenAI's endpoints."""

    name = "openai"
    prefixes = ("/v1/", "/embeddings")
    operations = (
        Operation("/v1/embeddings", "POST", "Embed texts and images", _EMBEDDINGS, _REQUEST),
        Operation("/embeddings", "POST", "The same, without the version", _EMBEDDINGS, _REQUEST),
        Operation("/v1/models", "GET", "List the model", _LIST),
        Operation("/models", "GET", "The same, without the version", _LIST),
        Operation("/v1/models/{model:path}", "GET", "Describe the model", _MODEL),
    )
    error_schema = schemas.record(
        ("error",),
        error=schemas.record(
            ("message", "type", "param", "code"),
            message=schemas.TEXT,
            type=schemas.TEXT,
            param=schemas.one_of(schemas.TEXT, {"type": "null"}),
            code=schemas.TEXT,
        ),
    )
    timeout_header = TIMEOUT_MS
    paths = FIELD_PATHS

    def __init__(self, service: Service) -> None:
        self._service = service
        self._created = int(time.time())

    def endpoints(self) -> list[Endpoint]:
        """Returns what is served at which path."""
        return [
            *(
                Endpoint(path, ("POST",), self, "embeddings", _EMBED, self._embeddings)
                for path in ("/v1/embeddings", "/embeddings")
            ),
            *(
                Endpoint(path, ("GET",), self, "models", _MODELS, self._models)
                for path in ("/v1/models", "/models")
            ),
            Endpoint("/v1/models/{model:path}", ("GET",), self, "model", _MODELS, self._model),
        ]

    def error(self, error: HttpError) -> Answer:
        """Returns an error as OpenAI's object."""
        kind = _TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
        param = error.violations[0].field if error.violations else None
        code = error.reason.lower()
        if isinstance(error.error, ModelUnknown):
            param, code = "model", "model_not_found"
        content = {"message": error.message, "type": kind, "param": param, "code": code}
        return Answer.json({"error": content}, error.status)

    async def _embeddings(self, request: HttpRequest, call: CallScope) -> Answer:
        model = self._service.model_info().model
        wanted = read_embeddings(fields_of(request.json()), model)
        found = await embed_inputs(
            self._service,
            wanted.inputs,
            wanted.path,
            call,
            wanted.options,
            request.room,
            wanted.format.row_bytes,
        )
        return await Answer.in_parts(write_embeddings(found, wanted.format))

    async def _models(self, _: HttpRequest, __: CallScope) -> Answer:
        return Answer.json({"object": "list", "data": [self._described()]})

    async def _model(self, request: HttpRequest, _: CallScope) -> Answer:
        check_model(request.path_parameters["model"], self._service.model_info().model)
        return Answer.json(self._described())

    def _described(self) -> dict[str, object]:
        model_id = self._service.model_info().model.model_id
        return {"id": model_id, "object": "model", "created": self._created, "owned_by": "alignserve"}


def read_embeddings(fields: Fields, model: ModelInfo) -> EmbeddingsRequest:
    """Reads the body of a request for embeddings.

    Raises:
        InvalidArgument: A field is invalid or not supported.
        ModelUnknown: It names another model.
    """
    name = fields.text("model")
    check_model(None if name == _NO_MODEL else name, model)
    check_dimensions(fields, "dimensions", model)
    check_dimensions(fields, "output_dimension", model)
    fields.choice("output_dtype", ("float",), "float")
    if fields.flag("late_chunking"):
        fields.refuse("late_chunking", "is not supported: each input has one embedding")
    choice = fields.choice("embedding_type", tuple(_FORMATS), "float")
    modality = fields.choice("modality", ("text", "image"), "")
    path = "messages" if "messages" in fields else "input"
    return EmbeddingsRequest(
        [_message_input(fields)] if path == "messages" else _inputs(fields, modality),
        path,
        EmbeddingOptions(
            truncate=_truncates(fields),
            normalize=all([fields.flag("normalize", True), fields.flag("normalized", True)]),
        ),
        _FORMATS[fields.choice("encoding_format", tuple(_FORMATS), choice)],
    )


def write_embeddings(found: EmbeddedInputs, form: VectorFormat) -> Iterator[bytes]:
    """Yields the answer to a request for embeddings, in parts."""
    data = (
        b'{"object":"embedding","index":%d,"embedding":%s}' % (index, form.write(row))
        for index, row in enumerate(found.embeddings)
    )
    tokens = found.token_count
    return json_object(
        [
            ("object", json_value("list")),
            ("data", json_list(data)),
            ("model", json_value(found.model.model_id)),
            ("usage", json_value({"prompt_tokens": tokens, "total_tokens": tokens})),
        ]
    )


def _inputs(fields: Fields, modality: str) -> list[Input]:
    if "input" not in fields:
        raise RequestEmpty.at("input", "is missing; send a text, an image as a data URI, or a list of them")
    return [_input(value, path, modality) for path, value in one_or_many(fields.value("input"), "input")]


def _input(value: object, path: str, modality: str) -> Input:
    if isinstance(value, str):
        return _STRINGS[modality](path, value)
    if isinstance(value, dict):
        return item(value, path)
    if isinstance(value, list | int | float) and not isinstance(value, bool):
        raise InvalidArgument.at(
            path,
            "is part of a token array, which only the model that it was made for can read; send strings (in "
            "LangChain, set check_embedding_ctx_length=False)",
        )
    raise wrong_type(path, "a string or an object", value)


def _message_input(fields: Fields) -> Input:
    if "input" in fields:
        raise InvalidArgument.at("input", "is given along with messages; send one of them")
    listed = input_entries(fields.value("messages"), "messages")
    messages = [Fields(as_object(message, path), path) for path, message in listed]
    parts = [part for message in messages for part in _parts_of(message)]
    return only_part(parts, "messages")


def _parts_of(message: Fields) -> list[Input]:
    path = message.path_of("content")
    if "content" not in message:
        raise RequestEmpty.at(path, "is missing; send one text or one image")
    return content_parts(message.value("content"), path) or [only_part([], path)]


def _truncates(fields: Fields) -> bool:
    tokens = fields.integer("truncate_prompt_tokens")
    if tokens not in (None, -1):
        raise InvalidArgument.at(
            "truncate_prompt_tokens", f"{tokens} is not supported; send -1 for the model's limit"
        )
    return any([tokens == -1, truncates(fields, "truncate"), fields.flag("truncation")])
