"""The inference container of Weaviate's module multi2vec-clip: set `CLIP_INFERENCE_API` to the HTTP port."""

from __future__ import annotations

from alignserve_server.api import ANY_SCOPE, CallScope, MethodRules, Scope, Service
from alignserve_server.http import schemas
from alignserve_server.http.answer import Answer
from alignserve_server.http.call import FIELD_PATHS
from alignserve_server.http.embedding import EmbeddingOptions, embed_inputs
from alignserve_server.http.endpoint import Endpoint
from alignserve_server.http.field_table import read, request_schema
from alignserve_server.http.inputs import MAX_INPUTS, ImageInput, Input, TextInput, input_entries
from alignserve_server.http.json_fields import Fields, as_text, fields_of
from alignserve_server.http.openapi import Operation
from alignserve_server.http.request import HttpRequest
from alignserve_server.http.status import HttpError
from alignserve_server.http.timeouts import TIMEOUT_MS
from alignserve_server.http.vectors import FLOATS, json_list, json_object

FIELDS = (
    read(
        "texts",
        "texts; those that are too long are cut, as Weaviate expects it",
        schemas.list_of(schemas.PROMPT, MAX_INPUTS - 1, minimum=0),
        ["a cat"],
    ),
    read(
        "images", "images in base64", schemas.list_of(schemas.IMAGE, MAX_INPUTS - 1, minimum=0), ["aW1hZ2U="]
    ),
)


def _given(name: str) -> schemas.JsonSchema:
    return {"required": [name], "properties": {name: {"type": "array", "items": {}, "minItems": 1}}}


_VECTORS = schemas.list_of(schemas.VECTOR, minimum=0)

_EMBED = MethodRules(scopes=frozenset({Scope.EMBED}))
_META = MethodRules(scopes=ANY_SCOPE)
_PROBE = MethodRules(scopes=None, is_metered=False, is_traced=False)


class Weaviate:
    """Serves the endpoints that Weaviate calls."""

    name = "weaviate"
    prefixes = ("/vectorize", "/meta", "/.well-known/")
    operations = (
        Operation(
            "/vectorize",
            "POST",
            "Embed texts and images",
            schemas.record(("textVectors", "imageVectors"), textVectors=_VECTORS, imageVectors=_VECTORS),
            {**request_schema(FIELDS), "anyOf": [_given("texts"), _given("images")]},
        ),
        Operation("/meta", "GET", "Describe the model", schemas.record(("model",), model=schemas.TEXT)),
        Operation("/.well-known/ready", "GET", "Whether calls are served", None, is_open=True),
        Operation("/.well-known/live", "GET", "Whether the process lives", None, is_open=True),
    )
    error_schema = schemas.record(("error",), error=schemas.TEXT, reason=schemas.TEXT)
    timeout_header = TIMEOUT_MS
    paths = FIELD_PATHS

    def __init__(self, service: Service) -> None:
        self._service = service

    def endpoints(self) -> list[Endpoint]:
        """Returns what is served at which path."""
        return [
            Endpoint("/vectorize", ("POST",), self, "vectorize", _EMBED, self._vectorize),
            Endpoint("/meta", ("GET",), self, "meta", _META, self._meta),
            Endpoint("/.well-known/ready", ("GET",), self, "ready", _PROBE, self._ready),
            Endpoint("/.well-known/live", ("GET",), self, "live", _PROBE, self._live),
        ]

    def error(self, error: HttpError) -> Answer:
        """Returns an error as Weaviate reads it."""
        return Answer.json({"error": error.message, "reason": error.reason}, error.status)

    async def _vectorize(self, request: HttpRequest, call: CallScope) -> Answer:
        self._service.check_ready()
        fields = fields_of(request.json())
        texts, images = _inputs(fields, "texts", TextInput), _inputs(fields, "images", ImageInput)
        options = EmbeddingOptions(truncate=True)
        path = "texts" if texts or not images else "images"
        found = await embed_inputs(self._service, [*texts, *images], path, call, options, request.room)
        return await Answer.in_parts(
            json_object(
                [
                    ("textVectors", json_list(map(FLOATS.write, found.embeddings[: len(texts)]))),
                    ("imageVectors", json_list(map(FLOATS.write, found.embeddings[len(texts) :]))),
                ]
            )
        )

    async def _meta(self, _: HttpRequest, __: CallScope) -> Answer:
        info = self._service.model_info()
        return Answer.json(
            {
                "model": info.model.model_id,
                "fingerprint": info.model.fingerprint,
                "dimensions": info.model.embedding_dimension,
                "version": info.server_version,
            }
        )

    async def _ready(self, _: HttpRequest, __: CallScope) -> Answer:
        self._service.readiness.check_wanted()
        return Answer(status=204, media_type=None)

    async def _live(self, _: HttpRequest, __: CallScope) -> Answer:
        return Answer(status=204, media_type=None)


def _inputs(fields: Fields, name: str, kind: type[TextInput] | type[ImageInput]) -> list[Input]:
    if name not in fields:
        return []
    return [kind(path, as_text(value, path)) for path, value in input_entries(fields.value(name), name)]
