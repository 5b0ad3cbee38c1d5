"""The API on plain values: readiness, limits and the engine behind one class that every door calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

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

OnScored = Callable[[Sequence[str], list[ScoredLabel]], object]  # takes all labels, and those of one image


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """What is served, and within which limits."""

    model: ModelInfo
    limits: RequestLimits
    server_version: str


@dataclass(frozen=True, slots=True)
class ResponseBound:
    """How a door bounds a response before any work is done for it."""

    most_bytes: Callable[[ModelInfo], int]  # called from a thread if there are many labels
    make_room: Callable[[int], Awaitable[object]]  # for so many bytes; raises a `ServingError` if it cannot


class Service:
    """Serves the API once `engine` is set; until then `readiness` refuses calls."""

    def __init__(self, readiness: Readiness, limits: RequestLimits, server_version: str) -> None:
        self.engine: Engine | None = None
        self.limits = limits
        self.readiness = readiness
        self._server_version = server_version

    def check_ready(self) -> None:
        """Passes if a call or stream that comes now can be served.

        Raises:
            ModelLoading, ModelStalled, ShuttingDown: It cannot.
        """
        self.readiness.check()

    def check_model(self) -> None:
        """Passes if an item of a stream can be served: a stream that is draining answers what it has read.

        Raises:
            ModelLoading, ModelStalled: It cannot.
        """
        self.readiness.check_model()

    def model_info(self) -> ServiceInfo:
        """Returns what is served.

        Raises:
            ModelLoading, ModelStalled, ShuttingDown: Nothing is.
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
        """Embeds encoded images. Empties the list: each image is dropped when it is decoded.

        Args:
            contents: The images.
            call: Whose they are.
            normalize: Whether embeddings get length 1.
            bound: Of the response; None if the door has none.

        Raises:
            ServingError: The call was refused, expired or failed.
        """
        engine = self._engine_for(call)
        _describe_embeddings(call, engine)
        check_images(contents, self.limits, call.paths)
        if bound is not None:
            await bound.make_room(bound.most_bytes(engine.info))
        result = await engine.embed_images(contents, call)
        return replace(result, embeddings=l2_normalize(result.embeddings)) if normalize else result

    async def embed_texts(
        self,
        texts: Sequence[str],
        call: CallContext,
        *,
        truncate: bool = False,
        normalize: bool = True,
        bound: ResponseBound | None = None,
    ) -> TextEmbeddings:
        """Embeds texts, of which `truncate` cuts those that are too long. See `embed_images`.

        Raises:
            ServingError: The call was refused, expired or failed.
        """
        engine = self._engine_for(call)
        _describe_embeddings(call, engine)
        check_texts(texts, self.limits, call.paths)
        if bound is not None:
            await bound.make_room(bound.most_bytes(engine.info))
        result = await engine.embed_texts(texts, call, truncate=truncate)
        call.trace.count_input_tokens(sum(len(text.input_ids) for text in result.texts))
        return replace(result, embeddings=l2_normalize(result.embeddings)) if normalize else result

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

        `on_scored` is called once per image, in order, with all labels of the query and those of the image,
        best first; from a thread if they are many.

        Raises:
            ServingError: The call was refused, expired or failed.
        """
        engine = self._engine_for(call)
        check_images(contents, self.limits, call.paths)

        def check() -> tuple[LabelSet, int]:
            labels = checked_labels(query, self.limits, call.paths)
            return labels, 0 if bound is None else bound.most_bytes(engine.info)

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
    call.trace.describe_embeddings(engine.info.model_id, engine.info.embedding_dimension)
