"""The API on plain values: one class in front of readiness, limits and engine, which every door calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from alignserve_server.api.limits import (
    LabelQuery,
    RequestLimits,
    check_images,
    check_texts,
    checked_labels,
)
from alignserve_server.api.readiness import Readiness
from alignserve_server.batching.call import CallContext
from alignserve_server.batching.classifier import Classified
from alignserve_server.batching.embedder import ImageEmbeddings, TextEmbeddings
from alignserve_server.batching.engine import Engine
from alignserve_server.model.encoder import ModelInfo, l2_normalize
from alignserve_server.model.zero_shot import LabelSet, ScoredLabel

OnScored = Callable[[Sequence[str], list[ScoredLabel]], object]  # takes all labels and the scores of an image


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """The model being served, and the request limits."""

    model: ModelInfo
    limits: RequestLimits
    server_version: str


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
        self._server_version = server_version

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
        return ServiceInfo(self._loaded_engine().info, self.limits, self._server_version)

    async def embed_images(
        self,
        contents: list[bytes],
        call: CallContext,
        *,
        normalize: bool = True,
        bound: ResponseBound | None = None,
    ) -> ImageEmbeddings:
        """Embeds encoded images. Empties the list: each image is freed as soon as it is decoded.

        Args:
            contents: The images.
            call: The call that they belong to; its paths name fields in errors.
            normalize: Whether to scale embeddings to length 1.
            bound: Limit on the response; None if the door has none.

        Raises:
            ServingError: The call was refused, expired or failed.
        """
        engine = self._engine_for(call)
        _describe_embeddings(call, engine)
        check_images(contents, self.limits, call.paths)
        if bound is not None:
            await bound.make_room(bound.max_bytes(engine.info))
        result = await engine.embed_images(contents, call)
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
        if bound is not None:
            await bound.make_room(bound.max_bytes(engine.info))
        result = await engine.embed_texts(texts, call, truncate=truncate)
        if call.trace.is_sampled:
            call.trace.count_input_tokens(sum(len(text.input_ids) for text in result.texts))
        if not normalize:
            return result
        return TextEmbeddings(l2_normalize(result.embeddings), result.texts, result.timings)

    async def classify(
        self,
        contents: list[bytes],
        query: LabelQuery,
        call: CallContext,
        on_scored: OnScored,
        *,
        bound: ResponseBound | None = None,
    ) -> Classified:
        """Scores encoded images against labels. See `embed_images`.

        `on_scored` is called once per image, in order, with all labels of the query and the scored labels of
        the image, best first. With many labels it is called from a thread.

        Raises:
            ServingError: The call was refused, expired or failed.
        """
        engine = self._engine_for(call)
        check_images(contents, self.limits, call.paths)

        def check() -> tuple[LabelSet, int]:
            labels = checked_labels(query, self.limits, call.paths)
            return labels, 0 if bound is None else bound.max_bytes(engine.info)

        labels, size = check() if query.is_short else await engine.run_aside(call.flow, check)
        if bound is not None:
            await bound.make_room(size)
        return await engine.classify(contents, labels, query.top_k, call, partial(on_scored, labels.labels))

    def _engine_for(self, call: CallContext) -> Engine:
        if call.waits_for_room:
            self.check_model()
        else:
            self.check_ready()
        return self._loaded_engine()

    def _loaded_engine(self) -> Engine:
        assert self.engine is not None  # noqa: S101 — `server` sets it before it reports ready
        return self.engine


def _describe_embeddings(call: CallContext, engine: Engine) -> None:
    if call.trace.is_sampled:
        call.trace.describe_embeddings(engine.info.model_id, engine.info.embedding_dimension)
