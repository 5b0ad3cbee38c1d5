"""One `StreamInfer` call: responses are sent in the order that the client chose; see `ItemStream`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from alignserve.v1 import align_service_pb2 as pb

from alignserve_server.api import CallContext, internal_error
from alignserve_server.errors import CorrelationIdInvalid, InvalidArgument, ServingError
from alignserve_server.observability.metrics import Metrics
from alignserve_server.rpc.convert import item_count
from alignserve_server.rpc.item_stream import ItemStream
from alignserve_server.rpc.response_bytes import field
from alignserve_server.rpc.response_room import ResponseRoom
from alignserve_server.rpc.status import to_status_proto

# Returns the serialized response, without the correlation id.
Infer = Callable[[pb.StreamInferRequest, CallContext, ResponseRoom], Awaitable[bytes]]

_MAX_CORRELATION_ID_BYTES = 128
_MAX_ECHOED_CHARACTERS = 1024  # of an id that is too long; a client might not accept megabytes in return
_ID = pb.StreamInferResponse.CORRELATION_ID_FIELD_NUMBER
_ORDERS = (
    pb.DELIVERY_ORDER_UNSPECIFIED,
    pb.DELIVERY_ORDER_AS_COMPLETED,
    pb.DELIVERY_ORDER_AS_REQUESTED,
)


class InferStream(ItemStream[pb.StreamInferRequest]):
    """Runs the items of one stream."""

    def __init__(
        self,
        infer: Infer,
        write: Callable[[bytes], Awaitable[None]],
        make_room: Callable[[str], ResponseRoom],
        call: CallContext,
        metrics: Metrics,
        *,
        max_in_flight: int,
    ) -> None:
        super().__init__(write, max_in_flight=max_in_flight)
        self._infer = infer
        self._make_room = make_room  # for the response to an item, given its correlation id
        self._call = call
        self._metrics = metrics
        self._ids_in_flight: set[str] = set()

    def _room(self, request: pb.StreamInferRequest) -> ResponseRoom:
        return self._make_room(request.correlation_id)

    def _take_options(self, request: pb.StreamInferRequest) -> bool:
        """Applies the options of the first message; returns whether it contains nothing else."""
        order = request.stream_options.delivery_order
        if order not in _ORDERS:
            raise InvalidArgument.at(
                "stream_options.delivery_order", f"order {order} is unknown; use one of DeliveryOrder"
            )
        self._is_ordered = order == pb.DELIVERY_ORDER_AS_REQUESTED
        return request.WhichOneof("request") is None and request.HasField("stream_options")

    async def _answer(
        self,
        request: pb.StreamInferRequest,
        on_admitted: Callable[[], None],
        room: ResponseRoom,
        *,
        is_first: bool,
    ) -> bytes:
        """Returns the response as bytes, since it may have to wait until the client reads earlier ones."""
        correlation_id = request.correlation_id
        is_ours = False
        try:
            if request.HasField("stream_options") and not is_first:
                raise InvalidArgument.at("stream_options", "sent too late; send it in the first message")
            self._check_id(correlation_id)
            self._ids_in_flight.add(correlation_id)
            is_ours = True
            with self._call.trace.item() as trace:
                response = await self._infer(request, self._call.for_item(on_admitted, trace), room)
        except ServingError as error:
            kind = request.WhichOneof("request")
            items = 0 if kind is None else item_count(getattr(request, kind))
            self._metrics.count_refusal(error, self._call.flow.caller, items)
            response = _failed(error)
        except Exception as error:  # noqa: BLE001 — one item's bug must not end the stream
            response = _failed(internal_error("StreamInfer", error))
        finally:
            if is_ours:
                self._ids_in_flight.discard(correlation_id)
        return field(_ID, correlation_id[:_MAX_ECHOED_CHARACTERS].encode()) + response

    def _check_id(self, correlation_id: str) -> None:
        size = len(correlation_id.encode())
        if not 1 <= size <= _MAX_CORRELATION_ID_BYTES:
            raise CorrelationIdInvalid.at(
                "correlation_id", f"id has {size} bytes; send from 1 to {_MAX_CORRELATION_ID_BYTES}"
            )
        if correlation_id in self._ids_in_flight:
            raise CorrelationIdInvalid.at(
                "correlation_id", f"{correlation_id!r} is already in flight on this stream; use unique ids"
            )


def _failed(error: ServingError) -> bytes:
    serialized: bytes = pb.StreamInferResponse(error=to_status_proto(error)).SerializeToString()
    return serialized
