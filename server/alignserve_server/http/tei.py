"""Hugging Face's text-embeddings-inference, for images too: embeddings, similarity, info and health."""

from __future__ import annotations

from alignserve_server.api import ANY_SCOPE, CallScope, MethodRules, Scope, Service
from alignserve_server.http import schemas, similarity
from alignserve_server.http.answer import Answer
from alignserve_server.http.call import FIELD_PATHS
from alignserve_server.http.embedding import EmbeddingOptions, embed_inputs
from alignserve_server.http.embedding_fields import check_dimensions, model_name, truncates
from alignserve_server.http.endpoint import Endpoint
from alignserve_server.http.field_table import ignored, read, refused, request_schema
from alignserve_server.http.inputs import MAX_INPUTS, texts_of
from alignserve_server.http.json_fields import Fields, fields_of
from alignserve_server.http.openapi import Operation
from alignserve_server.http.request import HttpRequest
from alignserve_server.http.status import HttpError
from alignserve_server.http.timeouts import TIMEOUT_MS
from alignserve_server.http.vectors import FLOATS, json_list

_OPTIONS = (
    read("truncate", "`true` cuts texts that are too long, instead of refusing them", schemas.TRUNCATE, True),
    refused("truncation_direction", "unless it is `right`", "left", schemas.RIGHT),
    ignored("prompt_name", "ALIGN has no prompts", "query"),
)
EMBED_FIELDS = (
    read(
        "inputs",
        f"a text, an image as a data URI, or a list of 1 to {MAX_INPUTS} of them",
        schemas.TEXTS,
        ["a cat"],
        required=True,
    ),
    read("normalize", "`false` returns embeddings that are not scaled to length 1", schemas.FLAG, True),
    *_OPTIONS,
    refused("dimensions", "unless it is the model's, or 0", 3, schemas.DIMENSIONS),
)
SIMILARITY_FIELDS = (
    *similarity.FIELDS,
    read("parameters.truncate", "`true` cuts texts that are too long", schemas.TRUNCATE, True),
    refused("parameters.truncation_direction", "unless it is `right`", "left", schemas.RIGHT),
    ignored("parameters.prompt_name", "ALIGN has no prompts", "query"),
)

_VECTORS = schemas.list_of(schemas.VECTOR)
_COSINES = schemas.list_of(schemas.NUMBER)

_EMBED = MethodRules(scopes=frozenset({Scope.EMBED}))
_INFO = MethodRules(scopes=ANY_SCOPE)
_HEALTH = MethodRules(scopes=None, is_metered=False, is_traced=False)

# The names are those of text-embeddings-inference. All other errors are "Validation".
_TYPES_BY_REASON = {"REQUEST_EMPTY": "Empty", "TEXT_TOO_LONG": "Tokenizer", "TEXT_UNSUPPORTED": "Tokenizer"}
_TYPES_BY_STATUS = {429: "Overloaded", 500: "Backend", 503: "Unhealthy", 504: "Overloaded"}


class TextEmbeddingsInference:
    """Serves the endpoints of text-embeddings-inference that ALIGN can answer."""

    name = "tei"
    prefixes = ("/embed", "/similarity", "/info", "/health")
    operations = (
        Operation("/embed", "POST", "Embed texts and images", _VECTORS, request_schema(EMBED_FIELDS)),
        Operation(
            "/similarity", "POST", "Compare a text with others", _COSINES, request_schema(SIMILARITY_FIELDS)
        ),
        Operation("/info", "GET", "Describe the model", schemas.record(("model_id",), model_id=schemas.TEXT)),
        Operation("/health", "GET", "Whether calls are served", None, is_open=True),
    )
    error_schema = schemas.record(
        ("error", "error_type"), error=schemas.TEXT, error_type=schemas.TEXT, reason=schemas.TEXT
    )
    timeout_header = TIMEOUT_MS
    paths = FIELD_PATHS

    def __init__(self, service: Service) -> None:
        self._service = service

    def endpoints(self) -> list[Endpoint]:
        """Returns what is served at which path."""
        return [
            Endpoint("/embed", ("POST",), self, "embed", _EMBED, self._embed),
            Endpoint("/similarity", ("POST",), self, "similarity", _EMBED, self._similarity),
            Endpoint("/info", ("GET",), self, "info", _INFO, self._info),
            Endpoint("/health", ("GET",), self, "health", _HEALTH, self._health),
        ]

    def error(self, error: HttpError) -> Answer:
        """Returns an error as text-embeddings-inference has it."""
        kind = _TYPES_BY_REASON.get(error.reason) or _TYPES_BY_STATUS.get(error.status, "Validation")
        return Answer.json({"error": error.message, "error_type": kind, "reason": error.reason}, error.status)

    async def _embed(self, request: HttpRequest, call: CallScope) -> Answer:
        model = self._service.model_info().model
        fields = fields_of(request.json())
        check_dimensions(fields, "dimensions", model)
        options = EmbeddingOptions(truncate=_truncates(fields), normalize=fields.flag("normalize", True))
        found = await embed_inputs(self._service, texts_of(fields), "inputs", call, options, request.room)
        return await Answer.in_parts(json_list(map(FLOATS.write, found.embeddings)))

    async def _similarity(self, request: HttpRequest, call: CallScope) -> Answer:
        self._service.check_ready()
        fields = fields_of(request.json())
        cosines = await similarity.similarities(
            self._service,
            fields.object_of("inputs"),
            call,
            request.room,
            truncate=_truncates(fields.object_of("parameters")),
        )
        return Answer.json(cosines)

    async def _info(self, _: HttpRequest, __: CallScope) -> Answer:
        info = self._service.model_info()
        model, limits = info.model, info.limits
        return Answer.json(
            {
                "model_id": model.model_id,
                "model_sha": model.model_revision or None,
                "model_dtype": model.dtype,
                "served_model_name": model_name(model),
                "model_type": {"embedding": {"pooling": "cls"}},
                "max_concurrent_requests": limits.max_stream_in_flight,
                "max_input_length": model.max_text_tokens,
                "max_batch_tokens": limits.max_client_batch_size * model.max_text_tokens,
                "max_batch_requests": None,
                "max_client_batch_size": MAX_INPUTS,
                "auto_truncate": False,
                "tokenization_workers": 1,  # required by clients that are generated, which do not use it
                "version": info.server_version,
                "sha": None,
                "docker_label": None,
            }
        )

    async def _health(self, _: HttpRequest, __: CallScope) -> Answer:
        self._service.readiness.check_wanted()
        return Answer(media_type=None)


def _truncates(fields: Fields) -> bool:
    fields.choice("truncation_direction", ("right", "Right"), "right")
    return truncates(fields, "truncate")
