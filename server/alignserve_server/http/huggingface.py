"""Hugging Face's inference requests by task, as `huggingface_hub.InferenceClient` sends them to a URL.

The path may name the task. Otherwise the body tells: candidate labels make it a classification, and a source
sentence a similarity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import orjson

from alignserve_server.api import (
    CallScope,
    FieldPaths,
    LabelQuery,
    MethodRules,
    ModelInfo,
    ResponseBound,
    Scope,
    ScoredLabel,
    Service,
)
from alignserve_server.errors import InvalidArgument, RequestEmpty, TemplateInvalid
from alignserve_server.http import schemas, similarity
from alignserve_server.http.answer import Answer
from alignserve_server.http.call import FIELD_PATHS
from alignserve_server.http.embedding import EmbeddingOptions, decode_images, embed_inputs
from alignserve_server.http.embedding_fields import check_dimensions, check_model, truncates
from alignserve_server.http.endpoint import Endpoint
from alignserve_server.http.field_table import Field, ignored, read, refused, request_schema
from alignserve_server.http.inputs import ImageInput, one_or_many, texts_of
from alignserve_server.http.json_fields import Fields, as_text, fields_of, shown
from alignserve_server.http.openapi import Operation
from alignserve_server.http.request import HttpRequest
from alignserve_server.http.status import HttpError
from alignserve_server.http.timeouts import TIMEOUT_MS
from alignserve_server.http.vectors import FLOATS, json_list

EXTRACTION, SIMILARITY = "feature-extraction", "sentence-similarity"
CLASSIFICATION = "zero-shot-image-classification"

_TEMPLATE = "This is a photo of {}."  # as in the pipeline of transformers
_SCORED_BYTES = 80  # of an answer, in addition to the label

_OPTIONS = (
    read("truncate", "`true` cuts texts that are too long, instead of refusing them", schemas.TRUNCATE, True),
    ignored("prompt_name", "ALIGN has no prompts", "query"),
    refused("truncation_direction", "unless it is `right`", "left", schemas.RIGHT),
    refused("dimensions", "unless it is the model's, or 0", 3, schemas.DIMENSIONS),
    refused("encoding_format", "unless it is `float`", "base64", {"const": "float"}),
)
_EXTRACTION_OPTIONS = (
    read("normalize", "`false` returns embeddings that are not scaled to length 1", schemas.FLAG, True),
    *_OPTIONS,
)


def _also_in_parameters(options: Iterable[Field]) -> Iterator[Field]:
    for option in options:
        yield option
        yield replace(option, name=f"parameters.{option.name}", meaning="the same")


EXTRACTION_FIELDS = (
    read(
        "inputs", "a text, an image as a data URI, or a list of them", schemas.TEXTS, ["a cat"], required=True
    ),
    *_also_in_parameters(_EXTRACTION_OPTIONS),
)
CLASSIFICATION_FIELDS = (
    read(
        "inputs",
        "an image in base64 or as a data URI, or a list of them",
        schemas.IMAGES,
        "aW1hZ2U=",
        required=True,
    ),
    read(
        "parameters.candidate_labels",
        "the labels, as a list or separated by commas",
        schemas.LABELS,
        ["cat", "dog"],
        required=True,
    ),
    read(
        "parameters.hypothesis_template",
        f"the prompt, with one `{{}}` for the label; default `{_TEMPLATE}`",
        schemas.TEMPLATE,
        "a photo of a {}",
    ),
    read("parameters.top_k", "the maximum number of labels to return", schemas.WHOLE_NUMBER, 1),
)
SIMILARITY_FIELDS = (
    *similarity.FIELDS,
    *_also_in_parameters(_OPTIONS),
)

_LABELS = schemas.list_of(
    schemas.record(
        ("label", "score", "similarity"), label=schemas.TEXT, score=schemas.NUMBER, similarity=schemas.NUMBER
    )
)
_REQUESTS = schemas.one_of(
    request_schema(EXTRACTION_FIELDS),
    request_schema(CLASSIFICATION_FIELDS),
    request_schema(SIMILARITY_FIELDS),
)
_RESPONSES = schemas.one_of(
    schemas.list_of(schemas.VECTOR), _LABELS, schemas.list_of(_LABELS), schemas.list_of(schemas.NUMBER)
)

_ANY = MethodRules(scopes=frozenset({Scope.EMBED, Scope.CLASSIFY}))
_PATHS = ("/", "/models/{model:path}", "/pipeline/{task}/{model:path}", "/pipeline/{task}")


@dataclass(frozen=True, slots=True)
class ClassificationRequest:
    """What a request for a classification asks for."""

    images: list[ImageInput]
    query: LabelQuery
    is_list: bool  # of images; each then has a list of labels


class HuggingFace:
    """Serves the tasks of Hugging Face that ALIGN can do."""

    name = "huggingface"
    prefixes = ("/models/", "/pipeline/")
    operations = (
        Operation("/", "POST", "Run the task that the body is for", _RESPONSES, _REQUESTS),
        Operation("/models/{model:path}", "POST", "The same", _RESPONSES, _REQUESTS),
        Operation(
            "/pipeline/feature-extraction",
            "POST",
            "Embed texts and images",
            schemas.list_of(schemas.VECTOR),
            request_schema(EXTRACTION_FIELDS),
        ),
        Operation(
            "/pipeline/zero-shot-image-classification",
            "POST",
            "Score images against labels",
            schemas.one_of(_LABELS, schemas.list_of(_LABELS)),
            request_schema(CLASSIFICATION_FIELDS),
        ),
        Operation(
            "/pipeline/sentence-similarity",
            "POST",
            "Compare a text with others",
            schemas.list_of(schemas.NUMBER),
            request_schema(SIMILARITY_FIELDS),
        ),
    )
    error_schema = schemas.record(
        ("error", "error_type"), error=schemas.TEXT, error_type=schemas.TEXT, estimated_time=schemas.NUMBER
    )
    timeout_header = TIMEOUT_MS
    paths = FIELD_PATHS

    def __init__(self, service: Service) -> None:
        self._service = service
        self._tasks = {EXTRACTION: self._extract, SIMILARITY: self._compare, CLASSIFICATION: self._classify}

    def endpoints(self) -> list[Endpoint]:
        """Returns what is served at which path."""
        return [Endpoint(path, ("POST",), self, "inference", _ANY, self._infer) for path in _PATHS]

    def error(self, error: HttpError) -> Answer:
        """Returns an error as the inference API has it."""
        content: dict[str, object] = {"error": error.message, "error_type": error.reason}
        if error.retry_delay_seconds is not None:
            content["estimated_time"] = round(error.retry_delay_seconds, 3)
        return Answer.json(content, error.status)

    async def _infer(self, request: HttpRequest, call: CallScope) -> Answer:
        model = self._service.model_info().model
        model_path, _, task = request.path_parameters.get("model", "").partition("/pipeline/")
        check_model(model_path, model)
        fields = fields_of(request.json())
        task = request.path_parameters.get("task", "") or task or task_of(fields)
        if task not in self._tasks:
            raise InvalidArgument(
                f"the task {shown(task)} is not served; use one of {', '.join(self._tasks)}"
            )
        return await self._tasks[task](fields, request, call)

    async def _extract(self, fields: Fields, request: HttpRequest, call: CallScope) -> Answer:
        call.check_scopes({Scope.EMBED})
        options = read_options(fields, self._service.model_info().model)
        found = await embed_inputs(self._service, texts_of(fields), "inputs", call, options, request.room)
        return await Answer.in_parts(json_list(map(FLOATS.write, found.embeddings)))

    async def _compare(self, fields: Fields, request: HttpRequest, call: CallScope) -> Answer:
        call.check_scopes({Scope.EMBED})
        options = read_options(fields, self._service.model_info().model)
        cosines = await similarity.similarities(
            self._service, fields.object_of("inputs"), call, request.room, truncate=options.truncate
        )
        return Answer.json(cosines)

    async def _classify(self, fields: Fields, request: HttpRequest, call: CallScope) -> Answer:
        call.check_scopes({Scope.CLASSIFY})
        wanted = read_classification(fields)
        call.items = len(wanted.images)
        labels = wanted.query.labels
        size = len(wanted.images) * sum(2 * len(label.encode()) + _SCORED_BYTES for label in labels)
        answers: list[bytes] = []
        paths = _classification_paths(wanted)
        await self._service.classify(
            await decode_images(wanted.images),
            wanted.query,
            replace(call.context(), paths=paths),
            lambda names, scored: answers.append(_scored(names, scored)),
            bound=ResponseBound(lambda _: size, partial(request.room.take_for_classifications, paths.labels)),
        )
        return await Answer.in_parts(json_list(answers) if wanted.is_list else answers)


def task_of(fields: Fields) -> str:
    """Returns the task that a body is for."""
    if "candidate_labels" in fields.object_of("parameters"):
        return CLASSIFICATION
    inputs = fields.value("inputs")
    return SIMILARITY if isinstance(inputs, dict) else EXTRACTION


def read_options(fields: Fields, model: ModelInfo) -> EmbeddingOptions:
    """Reads the options of a request for embeddings, next to its inputs and in `parameters`.

    Raises:
        InvalidArgument: One is invalid or not supported.
    """
    places = (fields, fields.object_of("parameters"))
    for place in places:
        check_dimensions(place, "dimensions", model)
        place.choice("truncation_direction", ("right", "Right"), "right")
        place.choice("encoding_format", ("float",), "float")
    truncate = [truncates(place, "truncate") for place in places]
    normalize = [place.flag("normalize", True) for place in places]
    return EmbeddingOptions(truncate=any(truncate), normalize=all(normalize))


def read_classification(fields: Fields) -> ClassificationRequest:
    """Reads the body of a request for a classification.

    Raises:
        InvalidArgument: A field is missing or invalid.
    """
    if "inputs" not in fields:
        raise RequestEmpty.at("inputs", "is missing; send an image in base64")
    value = fields.value("inputs")
    parameters = fields.object_of("parameters")
    given = parameters.text("hypothesis_template")
    template = _TEMPLATE if given is None else given
    if template.count("{}") != 1:
        raise TemplateInvalid.at(
            parameters.path_of("hypothesis_template"), "write {} exactly once, for the label"
        )
    return ClassificationRequest(
        [_image(image, path) for path, image in one_or_many(value, "inputs")],
        LabelQuery(
            _labels(parameters), [template.replace("{}", "{label}")], parameters.integer("top_k") or 0
        ),
        isinstance(value, list),
    )


def _image(value: object, path: str) -> ImageInput:
    """Returns an image, which the JavaScript client wraps in an object."""
    if isinstance(value, dict) and "image" in value:
        path, value = f"{path}.image", value["image"]
    return ImageInput(path, as_text(value, path))


def _labels(parameters: Fields) -> list[str]:
    labels = parameters.value("candidate_labels")
    if isinstance(labels, str):
        return [label.strip() for label in labels.split(",") if label.strip()]  # as the pipeline does
    return parameters.texts("candidate_labels")


def _classification_paths(wanted: ClassificationRequest) -> FieldPaths:
    return replace(
        FIELD_PATHS,
        images="inputs",
        image=lambda position: wanted.images[position].path,
        labels="parameters.candidate_labels",
        label="parameters.candidate_labels[{}]".format,
        prompt_templates="parameters.hypothesis_template",
        prompt_template=lambda _: "parameters.hypothesis_template",
        top_k="parameters.top_k",
    )


def _scored(labels: Sequence[str], scored: Iterable[ScoredLabel]) -> bytes:
    return orjson.dumps(
        [
            {"label": labels[each.label_index], "score": each.score, "similarity": each.similarity}
            for each in scored
        ]
    )
