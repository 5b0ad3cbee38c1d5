"""The RPCs of the fake: they record what arrives, follow the script, and answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import grpc
from google.protobuf import wrappers_pb2
from google.protobuf.message import Message

from alignserve._fake.answers import Answers
from alignserve._fake.read_ahead import ReadAhead
from alignserve._fake.script import Failed, ScriptedFailure, invalid
from alignserve._fake.state import FakeState, ReceivedCall
from alignserve._fake.status import abort, status_of
from alignserve._health import HEALTH_SERVICE
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

_Request = TypeVar("_Request")
_Response = TypeVar("_Response", bound=Message)

_NEVER_SECONDS = 1e9  # without a deadline, gRPC reports a far-future time
_SERVING, _NOT_SERVING = 1, 2  # grpc.health.v1.HealthCheckResponse
_KEY_MISSING = "no API key; send the metadata 'authorization: Bearer KEY'"
_KEY_INVALID = "the API key is unknown, revoked or has expired; ask the operator for another"
_MAX_RESPONSE_KEY = "alignserve-max-response-bytes"
_MAX_RESPONSE_BYTES = 4 << 20  # of a caller that accepts gRPC's default


def health_handler(state: FakeState) -> grpc.GenericRpcHandler:
    """Returns the handler of grpc.health.v1, which follows the fake's readiness."""

    def check(request: bytes, context: Any) -> bytes:  # noqa: ARG001 — gRPC's signature
        status = _SERVING if state.is_ready else _NOT_SERVING
        return wrappers_pb2.Int32Value(value=status).SerializeToString()

    # No deserializer: the request stays bytes, whatever service it names.
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(check)
    return grpc.method_handlers_generic_handler(HEALTH_SERVICE, {"Check": handler})


class FakeServicer(pb_grpc.AlignServiceServicer):
    """Implements the RPCs."""

    def __init__(self, state: FakeState) -> None:
        self._state = state
        self._answers = Answers(state)

    def EmbedImage(self, request: pb.EmbedImageRequest, context: Any) -> pb.EmbedImageResponse:
        return self._unary("EmbedImage", request, context, self._answers.embed_image)

    def EmbedText(self, request: pb.EmbedTextRequest, context: Any) -> pb.EmbedTextResponse:
        return self._unary("EmbedText", request, context, self._answers.embed_text)

    def Classify(self, request: pb.ClassifyRequest, context: Any) -> pb.ClassifyResponse:
        return self._unary("Classify", request, context, self._answers.classify)

    def Compare(self, request: pb.CompareRequest, context: Any) -> pb.CompareResponse:
        return self._unary("Compare", request, context, self._answers.compare)

    def EmbedQuery(self, request: pb.EmbedQueryRequest, context: Any) -> pb.EmbedQueryResponse:
        return self._unary("EmbedQuery", request, context, self._answers.embed_query)

    def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Any) -> pb.GetModelInfoResponse:
        return self._unary("GetModelInfo", request, context, lambda _: self._state.info)

    def StreamInfer(
        self, request_iterator: Iterator[pb.StreamInferRequest], context: Any
    ) -> Iterator[pb.StreamInferResponse]:
        try:
            self._check_state("StreamInfer", context)
            yield from self._stream(request_iterator, context)
        except Failed as failed:
            abort(context, failed.failure)

    def _stream(
        self, requests: Iterator[pb.StreamInferRequest], context: Any
    ) -> Iterator[pb.StreamInferResponse]:
        end = self._state.script.next_break()
        if end is not None and end[0] == 0:
            raise Failed(end[1])
        read = ReadAhead(self._recorded(requests, context), self._state.info.max_stream_in_flight)
        context.add_callback(read.close)
        for answered, request in enumerate(self._in_order(read), start=1):
            self._state.gate.wait()
            yield self._answer(request, _max_response_bytes(context))
            if end is not None and answered == end[0]:
                raise Failed(end[1])

    def _recorded(
        self, requests: Iterator[pb.StreamInferRequest], context: Any
    ) -> Iterator[pb.StreamInferRequest]:
        for request in requests:
            self._record("StreamInfer", request, context)
            yield request

    def _in_order(self, requests: Iterable[pb.StreamInferRequest]) -> Iterator[pb.StreamInferRequest]:
        """Yields the items in the order of their answers, without messages that have only options."""
        order = pb.DELIVERY_ORDER_UNSPECIFIED
        reversed_items: list[pb.StreamInferRequest] = []
        for request in requests:
            order = request.stream_options.delivery_order or order
            if request.WhichOneof("request") is None:
                continue
            count = self._state.reverse_count if order != pb.DELIVERY_ORDER_AS_REQUESTED else 0
            reversed_items.insert(0, request)
            if len(reversed_items) >= count:
                self._state.reverse_count = 0
                yield from reversed_items
                reversed_items = []
        yield from reversed_items

    def _answer(self, request: pb.StreamInferRequest, max_bytes: int) -> pb.StreamInferResponse:
        kind = request.WhichOneof("request")
        assert kind is not None  # noqa: S101 — checked by the caller
        response = pb.StreamInferResponse(correlation_id=request.correlation_id)
        try:
            found = getattr(self._answers, kind)(getattr(request, kind))
            _check_size(found, max_bytes)
            getattr(response, kind).CopyFrom(found)
        except Failed as failed:
            response.error.CopyFrom(status_of(failed.failure))
        return response

    def _unary(
        self, method: str, request: _Request, context: Any, answer: Callable[[_Request], _Response]
    ) -> _Response:
        self._record(method, request, context)
        self._state.gate.wait()
        try:
            self._check_state(method, context)
            response = answer(request)
            _check_size(response, _max_response_bytes(context))
        except Failed as failed:
            abort(context, failed.failure)
        return response

    def _record(self, method: str, request: Any, context: Any) -> None:
        remaining = context.time_remaining()
        call = ReceivedCall(
            method,
            request,
            dict(context.invocation_metadata()),
            remaining if remaining < _NEVER_SECONDS else None,
            time.monotonic(),
        )
        with self._state.arrived:
            self._state.received.append(call)
            self._state.arrived.notify_all()

    def _check_state(self, method: str, context: Any) -> None:
        self._check_key(dict(context.invocation_metadata()))
        self._state.stopped.wait(self._state.script.next_delay_seconds(method))
        failure = self._state.script.next_failure(method)
        if failure is not None:
            raise Failed(failure)
        if not self._state.is_ready:
            raise Failed(
                ScriptedFailure(grpc.StatusCode.UNAVAILABLE, "MODEL_LOADING", "the model is loading", 0.01)
            )

    def _check_key(self, metadata: dict[str, Any]) -> None:
        scheme, _, key = str(metadata.get("authorization", "")).partition(" ")
        if not self._state.api_keys or (scheme == "Bearer" and key in self._state.api_keys):
            return
        if key:
            raise Failed(ScriptedFailure(grpc.StatusCode.UNAUTHENTICATED, "KEY_INVALID", _KEY_INVALID))
        raise Failed(ScriptedFailure(grpc.StatusCode.UNAUTHENTICATED, "KEY_MISSING", _KEY_MISSING))


def _max_response_bytes(context: Any) -> int:
    return int(dict(context.invocation_metadata()).get(_MAX_RESPONSE_KEY, _MAX_RESPONSE_BYTES))


def _check_size(response: Message, limit: int) -> None:
    """Refuses a request whose response is larger than its caller accepts."""
    size = response.ByteSize()
    if size <= limit:
        return
    if isinstance(response, pb.ClassifyResponse):
        message = f"the response has {size} bytes, limit {limit}; set top_k, or accept more"
        raise invalid("LABELS_INVALID", "labels", message)
    message = f"the response has {size} bytes, limit {limit}; send fewer items, or accept more"
    raise invalid("BATCH_TOO_LARGE", "", message)
