"""Hugging Face's inference requests, by task: the shapes that `huggingface_hub.InferenceClient` sends to a URL.

The path may name the task. Otherwise the body tells: candidate labels make it a classification, and a source
sentence a similarity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import orjson

from alignserve_server.api import CallScope, LabelQuery, MethodRules, ResponseBound, Scope, ScoredLabel, Service
from alignserve_server.errors import InvalidArgument, RequestEmpty, TemplateInvalid
from alignserve_server.http import schemas, similarity
from alignserve_server.http.answer import Answer
from alignserve_server.http.call import FIELD_PATHS
from alignserve_server.http.embedding import EmbeddingOptions, decode_images, embed_inputs
from alignserve_server.http.embedding_fields import check_dimensions, check_model, truncates
from alignserve_server.http.endpoint import Endpoint
from alignserve_server.http.field_table import ignored, read, refused
from alignserve_server.http.inputs import ImageInput, Input, one_or_many, text_or_image
from alignserve_server.http.json_fields import Fields, as_text, fields_of, shown
from alignserve_server.http.request import HttpRequest
from alignserve_server.http.status import HttpError
from alignserve_server.http.timeouts import TIMEOUT_MS
from alignserve_server.http.vectors import FLOATS, json_list

EXTRACTION, SIMILARITY = "feature-extraction", "sentence-similarity"
CLASSIFICATION = "zero-shot-image-classification"

_TEMPLATE = "This is a photo of {}."  # as in the pipeline of transformers
_SCORED_BYTES = 64  # of an answer, in addition to the label

EXTRACTION_FIELDS = (
    read("inputs", "a text, an image as a data URI, or a list of them", schemas.TEXTS, ["a cat"], required=True),
    read("normalize", "`false` returns embeddings that are not scaled to length 1", schemas.FLAG, True),
    read("truncate", "cuts texts that are too long; otherwise they are refused", schemas.TRUNCATE, True),
    ignored("prompt_name", "ALIGN has no prompts", "query"),
    refused("truncation_direction", "unless it is `right`", "left", schemas.enum("right", "Right")),
    refused("dimensions", "unless it is the model's", 3),
)
CLASSIFICATION_FIELDS = (
    read("inputs", "an image in base64 or as a data URI, or a list of them", schemas.IMAGES, "aW1hZ2U=", required=True),
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
SIMILARITY_FIELDS = (*similarity.FIELDS, read("truncate", "cuts texts that are too long", schemas.FLAG, True))

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
            raise InvalidArgument(f"the task {shown(task)} is not served; use one of {', '.join(self._tasks)}")
        return await self._tasks[task](fields, request, call)

    async def _extract(self, fields: Fields, request: HttpRequest, call: CallScope) -> Answer:
        call.check_scope(Scope.EMBED)
        check_dimensions(fields, "dimensions", self._service.model_info().model)
        fields.choice("truncation_direction", ("right", "Right"), "right")
        options = EmbeddingOptions(truncate=truncates(fields, "truncate"), normalize=fields.flag("normalize", True))
        found = await embed_inputs(self._service, texts_of(fields), "inputs", call, options, request.room)
        return await Answer.in_parts(json_list(map(FLOATS.write, found.embeddings)))

    async def _compare(self, fields: Fields, request: HttpRequest, call: CallScope) -> Answer:
        call.check_scope(Scope.EMBED)
        cosines = await similarity.similarities(
            self._service, fields.object("inputs"), call, request.room, truncate=truncates(fields, "truncate")
        )
        return Answer.json(cosines)

    async def _classify(self, fields: Fields, request: HttpRequest, call: CallScope) -> Answer:
        call.check_scope(Scope.CLASSIFY)
        wanted = read_classification(fields)
        call.items = len(wanted.images)
        labels = wanted.query.labels
        size = len(wanted.images) * sum(2 * len(label.encode()) + _SCORED_BYTES for label in labels)
        answers: list[bytes] = []
        found = await self._service.classify(
            await decode_images(wanted.images),
            wanted.query,
            replace(call.context(), paths=_classification_paths(wanted)),
            lambda names, scored: answers.append(_scored(names, scored)),
            bound=ResponseBound(lambda _: size, request.room.take_for_classifications),
        )
        return await Answer.in_parts(json_list(answers) if wanted.is_list else answers)


def task_of(fields: Fields) -> str:
    """Returns the task that a body is for."""
    if "candidate_labels" in fields.object("parameters"):
        return CLASSIFICATION
    inputs = fields.value("inputs")
    return SIMILARITY if isinstance(inputs, dict) else EXTRACTION


def texts_of(fields: Fields) -> list[Input]:
    """Returns the inputs of a feature extraction: texts, and images as data URIs.

    Raises:
        InvalidArgument: They are missing, or something else.
    """
    if "inputs" not in fields:
        raise RequestEmpty.at("inputs", "is missing; send a text or a list of texts")
    return [text_or_image(as_text(value, path), path) for path, value in one_or_many(fields.value("inputs"), "inputs")]


def read_classification(fields: Fields) -> ClassificationRequest:
    """Reads the body of a request for a classification.

    Raises:
        InvalidArgument: A field is missing or invalid.
    """
    if "inputs" not in fields:
        raise RequestEmpty.at("inputs", "is missing; send an image in base64")
    value = fields.value("inputs")
    parameters = fields.object("parameters")
    template = parameters.text("hypothesis_template") or _TEMPLATE
    if template.count("{}") != 1:
        raise TemplateInvalid.at(parameters.path_of("hypothesis_template"), "write {} exactly once, for the label")
    return ClassificationRequest(
        [_image(image, path) for path, image in one_or_many(value, "inputs")],
        LabelQuery(_labels(parameters), [template.replace("{}", "{label}")], parameters.integer("top_k") or 0),
        isinstance(value, list),
    )
