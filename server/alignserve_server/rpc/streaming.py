"""One `StreamInfer` call: items run concurrently, and responses are sent in the order that the client chose.

A slot of the window is taken before a message is read and freed when its response is written. The next
message is read only once the previous one has room in the queue. So HTTP/2 flow control pauses a client that
sends faster than the model runs or stops reading, and a stream holds at most `max_in_flight` items, of which
at most one waits for room.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from alignserve.v1 import align_service_pb2 as pb

from alignserve_server.api import CallContext, internal_error
from alignserve_server.errors import CorrelationIdInvalid, InvalidArgument, ServingError
from alignserve_server.observability.metrics import Metrics
from alignserve_server.rpc.convert import item_count
from alignserve_server.rpc.response_room import ResponseRoom
from alignserve_server.rpc.status import to_status_proto

Infer = Callable[[pb.StreamInferRequest, CallContext, ResponseRoom], Awaitable[pb.StreamInferResponse]]
_Answer = asyncio.Task[bytes]

_MAX_CORRELATION_ID_BYTES = 128
_MAX_ECHOED_CHARACTERS = 1024  # of an id that is too long; a client might not accept megabytes in return
_ORDERS = (
    pb.DELIVERY_ORDER_UNSPECIFIED,
    pb.DELIVERY_ORDER_AS_COMPLETED,
    pb.DELIVERY_ORDER_AS_REQUESTED,
)


class InferStream:
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
        self._infer = infer
        self._write = write
        self._make_room = make_room  # for the response to an item, given its correlation id
        self._call = call
        self._metrics = metrics
        self._window = asyncio.Semaphore(max_in_flight)
        self._answers: dict[_Answer, ResponseRoom] = {}  # in flight, or finished and not yet written
        self._outbox: asyncio.Queue[_Answer | None] = asyncio.Queue()  # limited by the window; None ends it
        self._ids_in_flight: set[str] = set()
        self._is_ordered = False
        self._ending: Callable[[], ServingError] | None = None  # set if reading stops before the client ends
        self._reader: asyncio.Task[None] | None = None

    async def run(self, requests: AsyncIterator[pb.StreamInferRequest]) -> None:
        """Answers every request that it reads.

        Raises:
            ServingError: The stream cannot continue; everything read before has been answered.
        """
        self._reader = asyncio.create_task(self._read(requests))
        self._reader.add_done_callback(lambda _: self._outbox.put_nowait(None))  # even if it never started
        try:
            await self._write_answers()
            await self._finish_reading()
        finally:
            try:
                await self._cancel()
            finally:  # gRPC may cancel this again in the meantime
                self._forget()

    def drain(self, ending: Callable[[], ServingError]) -> None:
        """Stops reading; `run` answers the items read so far and raises `ending`. The first call counts."""
        if self._reader is not None and not self._reader.done():
            self._ending = self._ending or ending
            self._reader.cancel()

    async def _read(self, requests: AsyncIterator[pb.StreamInferRequest]) -> None:
        is_first = True
        while True:
            await self._window.acquire()
            try:
                request = await requests.__anext__()
            except StopAsyncIteration:
                return
            options_only = is_first and self._take_options(request)
            if options_only:
                self._window.release()
            else:
                await self._start(request, is_first=is_first)
            is_first = False

    def _take_options(self, request: pb.StreamInferRequest) -> bool:
        """Applies the options of the first message; returns whether it contains nothing else."""
        order = request.stream_options.delivery_order
        if order not in _ORDERS:
            raise InvalidArgument.at(
                "stream_options.delivery_order", f"order {order} is unknown; use one of DeliveryOrder"
            )
        self._is_ordered = order == pb.DELIVERY_ORDER_AS_REQUESTED
        return request.WhichOneof("request") is None and request.HasField("stream_options")

    async def _start(self, request: pb.StreamInferRequest, *, is_first: bool) -> None:
        """Starts to answer a request; returns once it has room in the queue or an answer that needs none."""
        admitted = asyncio.Event()
        room = self._make_room(request.correlation_id)
        answer = asyncio.create_task(self._answer(request, admitted.set, room, is_first=is_first))
        answer.add_done_callback(lambda _: admitted.set())
        self._answers[answer] = room
        if self._is_ordered:
            self._outbox.put_nowait(answer)
        else:
            answer.add_done_callback(self._outbox.put_nowait)
        await admitted.wait()

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
            response = pb.StreamInferResponse(error=to_status_proto(error))
        except Exception as error:  # noqa: BLE001 — one item's bug must not end the stream
            response = pb.StreamInferResponse(error=to_status_proto(internal_error("StreamInfer", error)))
        finally:
            if is_ours:
                self._ids_in_flight.discard(correlation_id)
        response.correlation_id = correlation_id[:_MAX_ECHOED_CHARACTERS]
        return response.SerializeToString()

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

    async def _write_answers(self) -> None:
        is_reading = True
        while is_reading or self._answers:
            answer = await self._outbox.get()
            if answer is None:
                is_reading = False
                continue
            response = await answer
            await self._write(response)
            self._answers.pop(answer).give_back()
            self._window.release()

    async def _finish_reading(self) -> None:
        if self._ending is not None:
            raise self._ending()
        if self._reader is not None:
            await self._reader  # raises its exception, if it failed

    async def _cancel(self) -> None:
        # Not in `run`: its frame is in the traceback of the error that ends the stream, and would keep the
        # last task alive.
        assert self._reader is not None  # noqa: S101 — `run` has started it
        tasks = (self._reader, *self._answers)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self) -> None:
        """Gives back the room of responses that were not written, and drops the finished tasks.

        Their exceptions have tracebacks that refer to this stream and to the items' bytes: a reference cycle
        that would last until the garbage collector reaches the oldest generation.
        """
        self._reader = None
        for room in self._answers.values():
            room.give_back()
        self._answers.clear()
        while not self._outbox.empty():
            self._outbox.get_nowait()
