"""Answers `ModelInferRequest` by calling the API, independent of the transport."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignserve_server.api import (
    CallContext,
    FieldPaths,
    LabelQuery,
    ModelInfo,
    ResponseBound,
    Service,
)
from alignserve_server.errors import InvalidArgument, LabelsInvalid
from alignserve_server.kserve.messages import ModelInferResponse
from alignserve_server.kserve.models import CLASSIFY, COMPARE, IMAGE, TEXT, VERSION, find_model
from alignserve_server.kserve.query import Query, read_query
from alignserve_server.kserve.scores import ScoreTable, classes_bytes
from alignserve_server.kserve.statistics import ServedRequest, Statistics
from alignserve_server.kserve.tensors import InputTensor, add_output
from alignserve_server.rpc.response_room import ResponseRoom

PATHS = FieldPaths(
    images="image",
    image="image[{}]".format,
    pixels="image[{}]".format,
    texts="text",
    text="text[{}]".format,
    prompt_templates="parameters.prompt_templates",
    prompt_template="parameters.prompt_templates[{}]".format,
    top_k="parameters.top_k",
    pairs="image",
    pair_image="image[{}]".format,
    pair_pixels="image[{}]".format,
    pair_text="text[{}]".format,
    priority="metadata alignserve-priority",
)

Admit = Callable[[Query], Awaitable[CallContext]]  # raises a `ServingError` if the request may not be served
_Values = NDArray[Any] | Sequence[Sequence[bytes]]  # an array; or for classes, those of each image
_Outputs = Mapping[str, _Values]

_HEADER_BYTES = 256  # more than the response's own fields, or those of one output, have without elements
_CLASS_BYTES = 6  # that encode the length of an element
_ELEMENT_BYTES = {"FP32": 4, "FP16": 2, "INT32": 5}  # typed integers have up to five


class Inference:
    """Runs the models."""

    def __init__(self, service: Service, statistics: Statistics) -> None:
        self._service = service
        self._statistics = statistics
        self._run: dict[str, Callable[[_Job], Awaitable[_Outputs]]] = {
            IMAGE.name: self._embed_images,
            TEXT.name: self._embed_texts,
            CLASSIFY.name: self._classify,
            COMPARE.name: self._compare,
        }

    async def infer(self, request: Any, admit: Admit, room: ResponseRoom) -> Any:
        """Answers a request.

        Args:
            request: A `ModelInferRequest`.
            admit: Returns the context of the request's call once it may be served.
            room: Room for the response.

        Returns:
            A `ModelInferResponse`.

        Raises:
            ServingError: The request was refused, expired or failed.
        """
        model = find_model(request.model_name, request.model_version)
        with self._statistics.request(model.name) as served:
            query = read_query(model, request)
            call = replace(await admit(query), paths=PATHS)
            job = _Job(query, _with_timeout(call, query.timeout_seconds), room, served)
            outputs = await self._run[model.name](job)
            start = time.perf_counter()
            response = _response(query, outputs)
            served.output_seconds = time.perf_counter() - start
        return response

    async def _embed_images(self, job: _Job) -> _Outputs:
        images = job.take("image").images(self._service.limits.max_client_batch_size)
        job.served.items = len(images)
        result = await self._service.embed_images(
            images, job.call, normalize=job.is_normalized, bound=job.bound("image", len(images))
        )
        job.served.timings = result.timings
        return dict.fromkeys(job.query.outputs, result.embeddings)

    async def _embed_texts(self, job: _Job) -> _Outputs:
        texts = self._texts(job)
        job.served.items = len(texts)
        result = await self._service.embed_texts(
            texts,
            job.call,
            truncate=job.query.parameters.flag("truncate"),
            normalize=job.is_normalized,
            bound=job.bound("text", len(texts)),
        )
        job.served.timings = result.timings
        return dict.fromkeys(job.query.outputs, result.embeddings)

    async def _compare(self, job: _Job) -> _Outputs:
        limit = self._service.limits.max_client_batch_size
        images, texts = job.take("image").images(limit), self._texts(job)
        if len(images) != len(texts):
            raise InvalidArgument.at(
                "text", f"{len(texts)} texts for {len(images)} images; send one text for each image"
            )
        job.served.items = len(images) + len(texts)
        result = await self._service.compare(
            images,
            texts,
            job.call,
            truncate=job.query.parameters.flag("truncate"),
            bound=job.bound("image", len(images)),
        )
        job.served.timings = result.timings
        compared = result.comparisons
        values = {"similarity": compared.similarities, "logits": compared.logits}
        return {name: values[name] for name in job.query.outputs}

    async def _classify(self, job: _Job) -> _Outputs:
        limits, parameters = self._service.limits, job.query.parameters
        images = job.take("image").images(limits.max_client_batch_size)
        labels = job.take("labels").texts(limits.max_labels, limits.max_text_bytes, LabelsInvalid)
        job.served.items = len(images)
        top_k = parameters.count("top_k")
        table = ScoreTable(len(images), len(labels), top_k, job.query.outputs)
        result = await self._service.classify(
            images,
            LabelQuery(labels, _templates(job.query), top_k),
            job.call,
            table.add,
            bound=ResponseBound(
                partial(_scores_bytes, job.query, len(images), labels.elements, top_k),
                partial(job.room.take_for_classifications, job.call.paths.labels),
            ),
        )
        job.served.timings = result.timings
        return table.outputs()

    def _texts(self, job: _Job) -> list[str]:
        limits = self._service.limits
        return list(job.take("text").texts(limits.max_client_batch_size, limits.max_text_bytes))


class _Job:
    """A request that is being answered, and what that takes."""

    __slots__ = ("call", "query", "room", "served")

    def __init__(self, query: Query, call: CallContext, room: ResponseRoom, served: ServedRequest) -> None:
        self.query = query
        self.call = call
        self.room = room
        self.served = served

    def take(self, name: str) -> InputTensor:
        """Returns an input, and forgets it: until the answer, its bytes would be in memory twice."""
        return self.query.inputs.pop(name)

    @property
    def is_normalized(self) -> bool:
        return not self.query.parameters.flag("skip_normalization")

    def bound(self, field: str, rows: int) -> ResponseBound:
        """Returns the limit on a response of arrays with that many rows."""
        return ResponseBound(
            partial(_arrays_bytes, self.query, rows), partial(self.room.take_for_embeddings, field)
        )


def _with_timeout(call: CallContext, timeout_seconds: float | None) -> CallContext:
    if timeout_seconds is None:
        return call
    deadline = asyncio.get_running_loop().time() + timeout_seconds
    return replace(call, deadline=deadline if call.deadline is None else min(deadline, call.deadline))


def _templates(query: Query) -> list[str]:
    one, several = query.parameters.text("prompt_template"), query.parameters.texts("prompt_templates")
    if one is not None and several:
        raise InvalidArgument.at("parameters.prompt_template", "prompt_templates is given as well; send one")
    return several if one is None else [one]


def _response(query: Query, outputs: _Outputs) -> Any:
    response = ModelInferResponse(model_name=query.model.name, model_version=VERSION, id=query.id)
    datatypes = {output.name: output.datatype for output in query.model.outputs}
    for name, values in outputs.items():
        datatype = datatypes[name] if isinstance(values, np.ndarray) else "BYTES"
        add_output(response, name, datatype, values, is_raw=query.is_raw)
    return response


def _arrays_bytes(query: Query, rows: int, info: ModelInfo) -> int:
    """Returns the maximum size of a response whose outputs have the shapes of the metadata."""
    size = _headers_bytes(query)
    for output in query.model.outputs:
        if output.name in query.outputs:
            columns = output.shape_with(info)[1:]
            size += rows * _ELEMENT_BYTES[output.datatype] * (columns[0] if columns else 1)
    return size


def _scores_bytes(query: Query, rows: int, labels: Sequence[bytes], top_k: int, _: ModelInfo) -> int:
    """Returns the maximum size of the response of `classify`."""
    columns = min(top_k or len(labels), len(labels))
    size = _headers_bytes(query)
    for output in query.model.outputs:
        class_count = min(query.outputs.get(output.name, 0), columns)
        if class_count:
            size += rows * (classes_bytes(labels, class_count) + class_count * _CLASS_BYTES)
        elif output.name in query.outputs:
            size += rows * columns * _ELEMENT_BYTES[output.datatype]
    return size


def _headers_bytes(query: Query) -> int:
    return (1 + len(query.outputs)) * _HEADER_BYTES + len(query.id.encode())
