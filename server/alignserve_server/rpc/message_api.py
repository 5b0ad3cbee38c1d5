"""The RPCs of `alignserve.v1.AlignService` on messages, independent of the transport."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

from alignserve.v1 import align_service_pb2 as pb
from google.protobuf.message import Message

from alignserve_server.api import CallContext, CallScope, LabelQuery, ResponseBound, Service, Timings
from alignserve_server.errors import RequestEmpty
from alignserve_server.observability.metrics import Metrics
from alignserve_server.rpc import convert, response_bytes, response_size
from alignserve_server.rpc.callers import Transport
from alignserve_server.rpc.methods import API_METHODS
from alignserve_server.rpc.open_streams import OpenStreams
from alignserve_server.rpc.response_room import ResponseRoom, ResponseRooms
from alignserve_server.rpc.shares import ConnectionShares
from alignserve_server.rpc.streaming import InferStream

_METHODS_OF_ITEMS = {  # by the field of `StreamInferRequest`, which `StreamInferResponse` has too
    "embed_image": "EmbedImage",
    "embed_text": "EmbedText",
    "classify": "Classify",
    "compare": "Compare",
    "embed_query": "EmbedQuery",
}

_FIELDS_OF_ANSWERS = {
    kind: pb.StreamInferResponse.DESCRIPTOR.fields_by_name[kind].number for kind in _METHODS_OF_ITEMS
}

_Unary = Callable[[Any, CallContext, ResponseRoom], Awaitable[bytes]]  # from request to serialized response


class MessageApi:
    """Answers messages by calling the API."""

    def __init__(
        self,
        service: Service,
        metrics: Metrics,
        *,
        max_stream_age_seconds: float | None,
        max_unread_response_bytes: int,
    ) -> None:
        unread = ConnectionShares(max_unread_response_bytes, metrics.unread_response_bytes.labels().set)
        self.rooms = ResponseRooms(service.limits.max_response_bytes, unread)
        self._unary: dict[str, _Unary] = {
            "EmbedImage": self._embed_image,
            "EmbedText": self._embed_text,
            "Classify": self._classify,
            "Compare": self._compare,
            "EmbedQuery": self._embed_query,
        }
        self._service = service
        self._metrics = metrics
        self.streams = OpenStreams(max_stream_age_seconds)

    async def answer(
        self, method: str, request: Any, call: CallScope, make_room: Callable[[], ResponseRoom]
    ) -> bytes:
        """Returns the serialized response to a unary call.

        Args:
            method: The method's name in the proto.
            request: The request message.
            call: The account of the call.
            make_room: Returns room for the response, which is given back by the sender of the response.

        Raises:
            ServingError: The call was refused, expired or failed.
        """
        if method == "GetModelInfo":
            return _serialized(convert.model_info(self._service.model_info()))
        return await self._unary[method](request, call.context(), make_room())

    async def stream(
        self,
        requests: AsyncIterator[pb.StreamInferRequest],
        write: Callable[[bytes], Awaitable[None]],
        transport: Transport,
        call: CallScope,
    ) -> None:
        """Answers a stream until it ends.

        Args:
            requests: The stream's items.
            write: Sends a serialized `StreamInferResponse`; returns when the next one can be sent.
            transport: The connection and metadata of the stream.
            call: The account of the stream.

        Raises:
            ServingError: The stream cannot continue; everything read before has been answered.
        """
        self._service.check_ready()
        stream = InferStream(
            partial(self._infer, call),
            write,
            self.rooms.of_items(transport),
            call.context(),
            self._metrics,
            max_in_flight=self._service.limits.max_stream_in_flight,
        )
        await self.streams.run(stream, requests)

    def drain_streams(self) -> None:
        """Ends every stream once it has answered the items that it has read."""
        self.streams.drain()

    async def _infer(
        self, stream: CallScope, request: pb.StreamInferRequest, call: CallContext, room: ResponseRoom
    ) -> bytes:
        self._service.check_model()
        kind = request.WhichOneof("request")
        method = "StreamInfer" if kind is None else _METHODS_OF_ITEMS[kind]
        # The stream is not read while this waits.
        await stream.admit_item(API_METHODS[method].scopes or frozenset())
        if kind is None:
            raise RequestEmpty.at("request", f"request is not set; set one of {', '.join(_METHODS_OF_ITEMS)}")
        answer = await self._unary[method](getattr(request, kind), call, room)
        return response_bytes.field(_FIELDS_OF_ANSWERS[kind], answer)

    async def _embed_image(
        self, request: pb.EmbedImageRequest, call: CallContext, room: ResponseRoom
    ) -> bytes:
        start = time.perf_counter()
        encode = response_bytes.embedding_encoder(request.embedding_options)
        result = await self._service.embed_images(
            convert.image_inputs(request.images),
            call,
            normalize=not request.embedding_options.skip_normalization,
            bound=ResponseBound(
                partial(response_size.embed_image_response_bytes, request),
                partial(room.take_for_embeddings, "images"),
            ),
        )
        return encode(result.embeddings) + _stats(pb.EmbedImageResponse, request, result.timings, start)

    async def _embed_text(self, request: pb.EmbedTextRequest, call: CallContext, room: ResponseRoom) -> bytes:
        start = time.perf_counter()
        encode = response_bytes.embedding_encoder(request.embedding_options)
        result = await self._service.embed_texts(
            list(request.texts),
            call,
            truncate=request.truncate,
            normalize=not request.embedding_options.skip_normalization,
            bound=ResponseBound(
                partial(response_size.embed_text_response_bytes, request),
                partial(room.take_for_embeddings, "texts"),
            ),
        )
        return b"".join(
            (
                encode(result.embeddings),
                response_bytes.tokenizations(result.texts),
                _stats(pb.EmbedTextResponse, request, result.timings, start),
            )
        )

    async def _classify(self, request: pb.ClassifyRequest, call: CallContext, room: ResponseRoom) -> bytes:
        start = time.perf_counter()
        results: list[bytes] = []
        found = await self._service.classify(
            convert.image_inputs(request.images),
            LabelQuery(request.labels, request.prompt_templates, request.top_k),
            call,
            lambda labels, scored: results.append(response_bytes.classification_result(labels, scored)),
            bound=ResponseBound(
                lambda _: response_size.classify_response_bytes(request),
                partial(room.take_for_classifications, call.paths.labels),
            ),
        )
        stats = _stats(pb.ClassifyResponse, request, found.timings, start, found.cached_label_count)
        return b"".join([*results, stats] if stats else results)  # a single result is not copied

    async def _compare(self, request: pb.CompareRequest, call: CallContext, room: ResponseRoom) -> bytes:
        start = time.perf_counter()
        result = await self._service.compare(
            convert.image_inputs(pair.image for pair in request.pairs),
            [pair.text for pair in request.pairs],
            call,
            truncate=request.truncate,
            bound=ResponseBound(
                partial(response_size.compare_response_bytes, request),
                partial(room.take_for_embeddings, "pairs"),
            ),
        )
        return b"".join(
            (
                _serialized(pb.CompareResponse(comparisons=convert.comparisons(result.comparisons))),
                response_bytes.tokenizations(result.texts),
                _stats(pb.CompareResponse, request, result.timings, start),
            )
        )

    async def _embed_query(
        self, request: pb.EmbedQueryRequest, call: CallContext, room: ResponseRoom
    ) -> bytes:
        start = time.perf_counter()
        encode = response_bytes.embedding_encoder(request.embedding_options)
        result = await self._service.embed_queries(
            convert.query_terms(request.queries),
            call,
            truncate=request.truncate,
            normalize=not request.embedding_options.skip_normalization,
            bound=ResponseBound(
                partial(response_size.embed_query_response_bytes, request),
                partial(room.take_for_embeddings, "queries"),
            ),
        )
        return encode(result.embeddings) + _stats(pb.EmbedQueryResponse, request, result.timings, start)


def _serialized(message: Message) -> bytes:
    serialized: bytes = message.SerializeToString()
    return serialized


def _stats(response: Any, request: Any, timings: Timings, start: float, cached_label_count: int = 0) -> bytes:
    """Returns the field `stats` of a kind of response, if the request asks for it."""
    if not request.include_stats:
        return b""
    stats = convert.inference_stats(timings, start, cached_label_count)
    return response_bytes.field(response.STATS_FIELD_NUMBER, stats.SerializeToString())
