"""The RPCs of `alignserve.v1.AlignService`, each a straight way from message to engine to message."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

from alignserve_server.access.keys import Scope
from alignserve_server.batching.call import CallContext
from alignserve_server.batching.engine import Engine
from alignserve_server.errors import RequestEmpty, ShuttingDown, StreamAged
from alignserve_server.model.zero_shot import LabelSet
from alignserve_server.observability.metrics import Metrics
from alignserve_server.observability.tracing import current_trace
from alignserve_server.rpc import convert, response_size
from alignserve_server.rpc.access import Access
from alignserve_server.rpc.callers import flow_of
from alignserve_server.rpc.health import Readiness
from alignserve_server.rpc.response_limit import ResponseLimit, response_limit
from alignserve_server.rpc.response_room import ResponseRoom
from alignserve_server.rpc.shares import ConnectionShares
from alignserve_server.rpc.streaming import InferStream

Context = grpc.aio.ServicerContext[Any, Any]


class AlignServicer(pb_grpc.AlignServiceServicer):
    """Serves the API once `engine` is set; until then `readiness` refuses calls."""

    def __init__(
        self,
        readiness: Readiness,
        access: Access,
        limits: convert.RequestLimits,
        metrics: Metrics,
        server_version: str,
        *,
        max_stream_age_seconds: float | None,
        max_unread_response_bytes: int,
    ) -> None:
        self.engine: Engine | None = None
        self._readiness = readiness
        self._access = access
        self._limits = limits
        self._metrics = metrics
        self._server_version = server_version
        self._max_stream_age_seconds = max_stream_age_seconds
        self._streams: set[InferStream] = set()
        self._unread = ConnectionShares(max_unread_response_bytes, metrics.unread_response_bytes.labels().set)

    async def EmbedImage(self, request: pb.EmbedImageRequest, context: Context) -> pb.EmbedImageResponse:
        self._readiness.check()
        return await self._embed_image(request, _call(context), self._room(context))

    async def EmbedText(self, request: pb.EmbedTextRequest, context: Context) -> pb.EmbedTextResponse:
        self._readiness.check()
        return await self._embed_text(request, _call(context), self._room(context))

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        self._readiness.check()
        response = pb.ClassifyResponse()
        await self._classify(request, _call(context), self._room(context), response)
        return response

    async def GetModelInfo(
        self,
        request: pb.GetModelInfoRequest,  # noqa: ARG002 — the message is empty
        context: Context,  # noqa: ARG002
    ) -> pb.GetModelInfoResponse:
        self._readiness.check()
        return convert.model_info(self._loaded_engine().info, self._limits, self._server_version)

    async def StreamInfer(  # type: ignore[override]  # a coroutine that writes is gRPC's other kind of handler
        self, requests: AsyncIterator[pb.StreamInferRequest], context: Context
    ) -> None:
        self._readiness.check()
        stream = InferStream(
            self._infer,
            context.write,
            partial(self._room_for_item, self._response_limit(context), context.peer()),
            replace(_call(context), waits_for_room=True),
            self._metrics,
            max_in_flight=self._limits.max_stream_in_flight,
        )
        self._streams.add(stream)
        aging = self._end_at_age(stream)
        try:
            await stream.run(requests)
        finally:
            if aging is not None:
                aging.cancel()
            self._streams.discard(stream)

    def drain_streams(self) -> None:
        """Lets every stream answer what it has read and end."""
        for stream in self._streams:
            stream.drain(ShuttingDown)

    def _end_at_age(self, stream: InferStream) -> asyncio.TimerHandle | None:
        if self._max_stream_age_seconds is None:
            return None
        # At most the limit, and spread: streams that began together should not come back together.
        age_seconds = self._max_stream_age_seconds * random.uniform(0.9, 1.0)  # noqa: S311 — not a secret
        return asyncio.get_running_loop().call_later(age_seconds, stream.drain, StreamAged)

    def _response_limit(self, context: Context) -> ResponseLimit:
        return response_limit(context, self._limits.max_response_bytes)

    def _room(self, context: Context) -> ResponseRoom:
        """Makes room for a unary call's response, until gRPC has written it."""
        room = ResponseRoom(self._response_limit(context), self._unread, context.peer(), waits=False)
        context.add_done_callback(lambda _: room.give_back())  # type: ignore[arg-type]  # as gRPC calls it
        return room

    def _room_for_item(self, limit: ResponseLimit, connection: str, correlation_id: str) -> ResponseRoom:
        return ResponseRoom(limit.for_item(correlation_id), self._unread, connection, waits=True)

    async def _infer(
        self, request: pb.StreamInferRequest, call: CallContext, room: ResponseRoom
    ) -> pb.StreamInferResponse:
        self._readiness.check_model()  # not `check`: a stream that is draining answers what it has read
        kind = request.WhichOneof("request")
        # The stream is not read meanwhile.
        await self._access.admit_item(Scope.CLASSIFY if kind == "classify" else Scope.EMBED)
        if kind == "embed_image":
            return pb.StreamInferResponse(
                embed_image=await self._embed_image(request.embed_image, call, room)
            )
        if kind == "embed_text":
            return pb.StreamInferResponse(embed_text=await self._embed_text(request.embed_text, call, room))
        if kind == "classify":
            response = pb.StreamInferResponse()
            await self._classify(request.classify, call, room, response.classify)
            return response
        raise RequestEmpty.at("request", "no request; set embed_image, embed_text or classify")

    async def _embed_image(
        self, request: pb.EmbedImageRequest, call: CallContext, room: ResponseRoom
    ) -> pb.EmbedImageResponse:
        start = time.perf_counter()
        engine = self._loaded_engine()
        _describe_embeddings(call, engine)
        contents = convert.image_contents(request.images, self._limits)
        encode = convert.embedding_encoder(request.embedding_options)
        size = response_size.embed_image_response_bytes(request, engine.info)
        await room.take_for_embeddings("images", size)
        result = await engine.embed_images(contents, call)
        return pb.EmbedImageResponse(
            embeddings=encode(result.embeddings),
            stats=convert.inference_stats(result.timings, start) if request.include_stats else None,
        )

    async def _embed_text(
        self, request: pb.EmbedTextRequest, call: CallContext, room: ResponseRoom
    ) -> pb.EmbedTextResponse:
        start = time.perf_counter()
        engine = self._loaded_engine()
        _describe_embeddings(call, engine)
        texts = convert.texts(request.texts, self._limits)
        encode = convert.embedding_encoder(request.embedding_options)
        size = response_size.embed_text_response_bytes(request, engine.info)
        await room.take_for_embeddings("texts", size)
        result = await engine.embed_texts(texts, call, truncate=request.truncate)
        if call.trace is not None:
            call.trace.count_input_tokens(sum(len(text.input_ids) for text in result.texts))
        return pb.EmbedTextResponse(
            embeddings=encode(result.embeddings),
            tokenizations=convert.tokenizations(result.texts),
            stats=convert.inference_stats(result.timings, start) if request.include_stats else None,
        )

    async def _classify(
        self,
        request: pb.ClassifyRequest,
        call: CallContext,
        room: ResponseRoom,
        response: pb.ClassifyResponse,
    ) -> None:
        """Fills in a response, which may be part of another: a large one takes long to copy."""
        start = time.perf_counter()
        engine = self._loaded_engine()
        contents = convert.image_contents(request.images, self._limits)
        check = partial(_checked_labels, request, self._limits)
        checked = check() if convert.has_short_labels(request) else await engine.run_aside(call.flow, check)
        labels, response_bytes = checked
        await room.take_for_classifications(response_bytes)
        on_scored = partial(convert.add_classification_result, response, labels.labels)
        found = await engine.classify(contents, labels, request.top_k, call, on_scored)
        if request.include_stats:
            stats = convert.inference_stats(found.timings, start, found.cached_label_count)
            response.stats.CopyFrom(stats)

    def _loaded_engine(self) -> Engine:
        assert self.engine is not None  # noqa: S101 — `server` sets it before it reports ready
        return self.engine


def _checked_labels(request: pb.ClassifyRequest, limits: convert.RequestLimits) -> tuple[LabelSet, int]:
    """Returns the labels of a request, and the most bytes that the response to it has."""
    return convert.label_set(request, limits), response_size.classify_response_bytes(request)


def _describe_embeddings(call: CallContext, engine: Engine) -> None:
    if call.trace is not None:
        call.trace.describe_embeddings(engine.info.model_id, engine.info.embedding_dimension)


def _call(context: Context) -> CallContext:
    remaining = context.time_remaining()
    is_bounded = remaining is not None and math.isfinite(remaining)
    deadline = asyncio.get_running_loop().time() + remaining if is_bounded else None
    return CallContext(deadline, flow=flow_of(context), trace=current_trace())
