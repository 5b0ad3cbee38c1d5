"""A stream over an asyncio channel: it reads a window ahead, reconnects, and answers every item once.

Tasks share the items in flight: one reads and prepares the caller's items, gRPC's own sends the unsent ones,
and one takes the answers and opens the next connection when one breaks. The caller's task only takes results.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import aclosing, suppress
from typing import Any

import grpc

from alignserve._call_defaults import finite
from alignserve._in_flight import InFlightItems
from alignserve._items import Item, StreamResult
from alignserve._requests import prepared, reads_files, stream_options
from alignserve._responses import item_failure
from alignserve._retry import end_of_stream, reconnect_delay_seconds, stream_expired
from alignserve._transport_async import AsyncTransport
from alignserve.errors import AlignserveError, CallCancelledError, UnavailableError
from alignserve.v1 import align_service_pb2 as pb

# Any: grpc.aio's stubs have no type for a call that is an async iterable and has `cancel`.
StreamMethod = Callable[..., Any]

_MAX_STATUS_WAIT_SECONDS = 5.0  # for a stream whose items are all answered
_REFUSAL_SECONDS = 0.5


class AsyncStream:
    """Runs the items of one stream."""

    def __init__(
        self,
        transport: AsyncTransport,
        method: StreamMethod,
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        ordered: bool,
        window: int,
        max_request_bytes: int,
        deadline: float,
    ) -> None:
        self._transport = transport
        self._defaults = transport.defaults
        self._method = method
        self._items = items
        self._ordered = ordered
        self._max_request_bytes = max_request_bytes
        self._deadline = deadline
        self._in_flight = InFlightItems(window, ordered=ordered)
        self._changed = asyncio.Condition()
        self._is_closed = False
        self._answers = 0
        # grpc.aio replaces a status that arrives while it sends by INTERNAL. The next connection is then
        # given time to be refused before it sends, so that the reason is not lost again.
        self._has_lost_status = False
        self._call: Any = None
        self._failure: Exception | None = None  # of the stream, which yields no more results
        self._source_failure: BaseException | None = None  # raised by the caller's items

    async def results(self) -> AsyncGenerator[StreamResult, None]:
        """Yields a result for every item. Closing the generator cancels the stream.

        Raises:
            AlignserveError: The stream broke and could not be opened again.
        """
        feeder = asyncio.create_task(self._feed())
        receiver = asyncio.create_task(self._receive())
        try:
            while (result := await self._next()) is not None:
                yield result
            await asyncio.wait([receiver], timeout=_MAX_STATUS_WAIT_SECONDS)
        finally:
            self._is_closed = True
            feeder.cancel()
            receiver.cancel()
            await asyncio.gather(feeder, receiver, return_exceptions=True)
        if self._source_failure is not None:
            raise self._source_failure

    async def fail(self, error: Exception) -> None:
        """Ends the stream: yields the remaining results, then raises the error."""
        async with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    async def _next(self) -> StreamResult | None:
        async with self._changed:
            while True:
                result = self._in_flight.take()
                if result is not None:
                    self._changed.notify_all()
                    return result
                if self._in_flight.is_done:
                    return None
                if self._failure is not None:
                    raise self._failure
                await self._changed.wait()

    async def _feed(self) -> None:
        try:
            await self._read_items()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 — the caller's own, raised again
            self._source_failure = error
        async with self._changed:
            self._in_flight.is_complete = True
            self._changed.notify_all()

    async def _read_items(self) -> None:
        async with aclosing(_iterated(self._items)) as items:
            async for item in items:
                request = await self._prepared(item)
                async with self._changed:
                    self._in_flight.enter(item, request)
                    self._changed.notify_all()
                    await self._changed.wait_for(lambda: self._in_flight.has_room)

    async def _prepared(self, item: Item) -> pb.StreamInferRequest | AlignserveError:
        if reads_files(item):
            return await asyncio.to_thread(prepared, item, self._max_request_bytes)
        return prepared(item, self._max_request_bytes)

    async def _receive(self) -> None:
        try:
            await self._run_connections()
        except AlignserveError as error:
            await self.fail(await self._transport.explained(error))
        except Exception as error:  # noqa: BLE001 — raised again by `results`, which waits for it
            await self.fail(error)
        except asyncio.CancelledError:
            if not self._is_closed:  # the call was cancelled, by an interceptor or with its channel
                await self.fail(CallCancelledError("the stream was cancelled", grpc.StatusCode.CANCELLED))
            raise

    async def _run_connections(self) -> None:
        attempt = 0
        while await self._wait_for_work():
            answers = self._answers
            error = await self._run_connection()
            if error is None:
                continue
            attempt = attempt + 1 if self._answers == answers else 1
            delay = reconnect_delay_seconds(
                self._defaults.retry, error, attempt, self._remaining_seconds(), self._defaults.clock.random
            )
            await self._transport.pause(delay)

    async def _wait_for_work(self) -> bool:
        async with self._changed:
            has_work = self._changed.wait_for(
                lambda: self._in_flight.has_unanswered or self._in_flight.is_complete
            )
            try:
                await asyncio.wait_for(has_work, finite(self._remaining_seconds()))
            except TimeoutError:
                raise stream_expired() from None
            return self._in_flight.has_unanswered

    async def _run_connection(self) -> AlignserveError | None:
        self._call = call = self._transport.open_stream(self._method, self._requests(), self._deadline)
        try:
            error = await self._take_answers(call)
            self._has_lost_status = False
        except grpc.aio.AioRpcError as cause:
            error = end_of_stream(cause)
            is_broken = isinstance(error, UnavailableError)
            self._has_lost_status = is_broken and cause.code() is grpc.StatusCode.INTERNAL
            return error
        finally:
            call.cancel()  # has no effect on a call that has ended; otherwise also ends its sender
        if error is None and self._in_flight.has_unanswered:
            return UnavailableError("the server ended the stream early", grpc.StatusCode.UNAVAILABLE)
        return error

    async def _take_answers(self, call: Any) -> AlignserveError | None:
        async for response in call:
            failure = item_failure(response)
            if isinstance(failure, UnavailableError):
                # The server cannot process any item now: reconnect and send the item again.
                return failure
            async with self._changed:
                self._in_flight.answer(response)
                self._answers += 1
                self._changed.notify_all()
        return None

    async def _requests(self) -> AsyncIterator[pb.StreamInferRequest]:
        if self._has_lost_status and await self._is_refused():
            return
        yield stream_options(ordered=self._ordered)
        sequence = -1
        while True:
            unsent = await self._wait_for_unsent(sequence)
            if unsent is None:
                return
            sequence, request = unsent
            yield request

    async def _is_refused(self) -> bool:
        """Waits for the server's metadata, which some servers send only with an answer, or for a refusal."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._call.initial_metadata(), _REFUSAL_SECONDS)
        return bool(self._call.done())

    async def _wait_for_unsent(self, after: int) -> tuple[int, pb.StreamInferRequest] | None:
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._in_flight.next_unsent(after) or self._in_flight.is_complete
            )
            return self._in_flight.next_unsent(after)

    def _remaining_seconds(self) -> float:
        return self._defaults.remaining_seconds(self._deadline)


async def _iterated(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncGenerator[Item, None]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
