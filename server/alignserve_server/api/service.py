"""The API on plain values: one class in front of readiness, limits and engine, which every door calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from alignserve_server.api.limits import (
    LabelQuery,
    RequestLimits,
    check_images,
    check_pairs,
    check_texts,
    checked_labels,
)
from alignserve_server.api.queries import QueryTerm, check_queries, joint_inputs, paths_of_terms
from alignserve_server.api.readiness import Readiness
from alignserve_server.batching.call import CallContext, Timings
from alignserve_server.batching.classifier import Classified
from alignserve_server.batching.embedder import ImageEmbeddings, TextEmbeddings
from alignserve_server.batching.engine import Engine
from alignserve_server.batching.joint import JointInputs
from alignserve_server.errors import QueryInvalid, check_none
from alignserve_server.model.encoder import Embeddings, ImageInput, ModelInfo, TokenizedText, l2_normalize
from alignserve_server.model.retrieval import Comparisons, compare_pairs, compose_queries
from alignserve_server.model.zero_shot import LabelSet, ScoredLabel

_NO_EMBEDDING = (
    "the terms cancel out, or their sum is out of range; change or drop terms, or send other weights"
)

OnScored = Callable[[Sequence[str], list[ScoredLabel]], object]  # takes all labels and the scores of an image


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """The model being served, and the request limits."""

    model: ModelInfo
    limits: RequestLimits
    server_version: str


@dataclass(frozen=True, slots=True)
class Compared:
    """The result of `Service.compare`."""

    comparisons: Comparisons
    texts: list[TokenizedText]
    timings: Timings


@dataclass(frozen=True, slots=True)
class QueryEmbeddings:
    """The result of `Service.embed_queries`."""

    embeddings: Embeddings  # (queries, embedding_dimension)
    timings: Timings


class ResponseBound(NamedTuple):
    """How a door limits the size of a response before any work is done for it."""

    max_bytes: Callable[[ModelInfo], int]  # called from a thread if there are many labels
    make_room: Callable[[int], Awaitable[object]]  # takes a size; raises a `ServingError` if it does not fit


class Service:
    """Serves the API once `engine` is set; until then `readiness` refuses calls."""

    def __init__(self, readiness: Readiness, limits: RequestLimits, server_version: str) -> None:
        self.engine: Engine | None = None
        self.limits = limits
        self.readiness = readiness
        self.server_version = server_version

    def check_ready(self) -> None:
        """Does nothing if a new call or stream can be served.

        Raises:
            ModelLoading, ModelStalled, ShuttingDown: It cannot.
        """
        self.readiness.check()

    def check_model(self) -> None:
        """Does nothing if a stream item can be served. A draining stream still answers items it has read.

        Raises:
            ModelLoading, ModelStalled: It cannot.
        """
        self.readiness.check_model()

    def model_info(self) -> ServiceInfo:
        """Returns the model being served and the limits.

        Raises:
            ModelLoading, ModelStalled, ShuttingDown: No model is being served.
        """
        self.check_ready()
        return ServiceInfo(self._loaded_engine().info, self.limits, self.server_version)

    async def embed_images(
        self,
        images: list[ImageInput],
        call: CallContext,
        *,
        normalize: bool = True,
        bound: ResponseBound | None = None,
    ) -> ImageEmbeddings:
        """Embeds images. Empties the list: each image is freed as soon as it is decoded.

        Args:
            images: The images: encoded files, or pixels.
            call: The call that they belong to; its paths name fields in errors.
            normalize: Whether to scale embeddings to length 1.
            bound: Limit on the response; None if the door has none.

        Raises:
            ServingError: The call was refused, expired or failed.
        """
        engine = self._engine_for(call)
        _describe_embeddings(call, engine)
        check_images(images, self.limits, call.paths)
        await _make_room(bound, engine)
        result = await engine.embed_images(images, call)
        if not normalize:
            return result
        return ImageEmbeddings(l2_normalize(result.embeddings), result.timings)

    async def embed_texts(
        self,
        texts: Sequence[str],
        call: CallContext,
        *,
        truncate: bool = False,
        normalize: bool = True,
        bound: ResponseBound | None = None,
    ) -> TextEmbeddings:
        """Embeds texts; `truncate` shortens those that are too long. See `embed_images`.

        Raises:
            ServingError: The call was refused, expired or failed.
        """
        engine = self._engine_for(call)
        _describe_embeddings(call, engine)
        check_texts(texts, self.limits, call.paths)
        await _make_room(bound, engine)
        result = await engine.embed_texts(texts, call, truncate=truncate)
        _count_tokens(call, result.texts)
        if not normalize:
            return result
        return TextEmbeddings(l2_normalize(result.embeddings), result.texts, result.timings)

    async def classify(
        self,
        images: list[ImageInput],
        query: LabelQuery,
        call: CallContext,
        on_scored: OnScored,
        *,
        bound: ResponseBound | None = None,
    ) -> Classified:
        """Scores images against labels. See `embed_images`.

        `on_scored` is called once per image, in order, with all labels of the query and the scored labels of
        the image, best first. With many labels it is called from a thread.

        Raises:
            ServingError: The call was refused, expired or failed.
        """
        engine = self._engine_for(call)
        check_images(images, self.limits, call.paths)

        def check() -> tuple[LabelSet, int]:
            labels = checked_labels(query, self.limits, call.paths)
            return labels, 0 if bound is None else bound.max_bytes(engine.info)

        labels, size = check() if query.is_short else await engine.run_aside(call.flow, check)
        if bound is not None:
            await bound.make_room(size)
        return await engine.classify(images, labels, query.top_k, call, partial(on_scored, labels.labels))

    async def compare(
        self,
        images: list[ImageInput],
        texts: list[str],
        call: CallContext,
        *,
        truncate: bool = False,
        bound: ResponseBound | None = None,
    ) -> Compared:
        """Compares each image with the text at the same position. See `embed_images`, `embed_texts`.

        Raises:
            ServingError: The call was refused, expired or failed.
        """
        engine = self._engine_for(call)
        check_pairs(images, self.limits, call.paths)
        await _make_room(bound, engine)
        inputs = JointInputs.of_pairs(images, texts)
        call = replace(call, paths=call.paths.of_pairs())
        result = await engine.embed_jointly(inputs, call, truncate=truncate)
        _count_tokens(call, result.tokenized)
        comparisons = compare_pairs(result.images, result.texts, engine.info.temperature)
        return Compared(comparisons, result.tokenized, result.timings)

    async def embed_queries(
        self,
        queries: list[list[QueryTerm]],
        call: CallContext,
        *,
        truncate: bool = False,
        normalize: bool = True,
        bound: ResponseBound | None = None,
    ) -> QueryEmbeddings:
        """Embeds composed queries, each as the sum of its terms. Empties the list.

        Args:
            queries: The terms of each query.
            call: The call that they belong to; its paths name fields in errors.
            truncate: Whether to shorten texts that are too long.
            normalize: Whether to scale the sums to length 1.
            bound: Limit on the response; None if the door has none.

        Raises:
            ServingError: The call was refused, expired or failed.
        """
        engine, paths = self._engine_for(call), call.paths
        _describe_embeddings(call, engine)
        check_queries(queries, self.limits, paths)
        await _make_room(bound, engine)
        weights = [[term.weight for term in query] for query in queries]
        inputs = joint_inputs(queries)
        queries.clear()  # it would keep the images in memory
        call = replace(call, paths=paths_of_terms(paths, inputs))
        result = await engine.embed_jointly(inputs, call, truncate=truncate)
        _count_tokens(call, result.tokenized)
        embeddings = compose_queries(inputs.in_order(result), weights, normalize=normalize)
        check_none(
            QueryInvalid.at(paths.query(position), _NO_EMBEDDING)
            for position in np.flatnonzero(np.isnan(embeddings[:, 0])).tolist()
        )
        return QueryEmbeddings(embeddings, result.timings)

    def _engine_for(self, call: CallContext) -> Engine:
        if call.waits_for_room:
            self.check_model()
        else:
            self.check_ready()
        return self._loaded_engine()

    def _loaded_engine(self) -> Engine:
        assert self.engine is not None  # noqa: S101 — `server` sets it before it reports ready
        return self.engine


async def _make_room(bound: ResponseBound | None, engine: Engine) -> None:
    if bound is not None:
        await bound.make_room(bound.max_bytes(engine.info))


def _count_tokens(call: CallContext, texts: Sequence[TokenizedText]) -> None:
    if call.trace.is_sampled:
        call.trace.count_input_tokens(sum(len(text.input_ids) for text in texts))


def _describe_embeddings(call: CallContext, engine: Engine) -> None:
    if call.trace.is_sampled:
        call.trace.describe_embeddings(engine.info.model_id, engine.info.embedding_dimension)
