"""One stream over an asyncio channel: it reads ahead by a window, reconnects, and answers every item once.

Tasks share a ledger: one reads the caller's items and prepares them, gRPC's own sends what is unsent, and one
takes the answers and opens the next connection when one breaks. The caller's task only takes results.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Any

import grpc

from alignserve._clock import Clock
from alignserve._items import Item, StreamResult
from alignserve._ledger import Ledger
from alignserve._requests import prepared, reads_files, stream_options
from alignserve._responses import item_failure
from alignserve._retry import RetryPolicy, reconnect_delay_seconds
from alignserve.errors import AlignserveError, UnavailableError, error_from_call
from alignserve.v1 import align_service_pb2 as pb

# Any: the stubs of grpc.aio leave out that a call has `cancel` and is an async iterable at once.
OpenCall = Callable[[AsyncIterator[pb.StreamInferRequest]], Any]


class AsyncStream:
    """Runs the items of one stream."""

    def __init__(
        self,
        open_call: OpenCall,
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        ordered: bool,
        window: int,
        max_request_bytes: int,
        policy: RetryPolicy,
        clock: Clock,
    ) -> None:
        self._open_call = open_call
        self._items = items
        self._ordered = ordered
        self._max_request_bytes = max_request_bytes
        self._policy = policy
        self._clock = clock
        self._ledger = Ledger(window, ordered=ordered)
        self._changed = asyncio.Condition()
        self._answers = 0
        self._failure: Exception | None = None  # of the stream: nothing more will come
        self._source_failure: Exception | None = None  # of the caller's items

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
            await receiver
        finally:
            feeder.cancel()
            receiver.cancel()
            await asyncio.gather(feeder, receiver, return_exceptions=True)
        if self._source_failure is not None:
            raise self._source_failure

    async def _next(self) -> StreamResult | None:
        async with self._changed:
            while True:
                result = self._ledger.take()
                if result is not None:
                    self._changed.notify_all()
                    return result
                if self._failure is not None:
                    raise self._failure
                if self._ledger.is_done:
                    return None
                await self._changed.wait()

    async def _feed(self) -> None:
        try:
            await self._read_items()
        except Exception as error:  # noqa: BLE001 — the caller's own, raised again by `results`
            self._source_failure = error
        async with self._changed:
            self._ledger.is_complete = True
            self._changed.notify_all()

    async def _read_items(self) -> None:
        async with aclosing(_iterated(self._items)) as items:
            async for item in items:
                request = await self._prepared(item)
                async with self._changed:
                    self._ledger.enter(item, request)
                    self._changed.notify_all()
                    await self._changed.wait_for(lambda: self._ledger.has_room)

    async def _prepared(self, item: Item) -> pb.StreamInferRequest | AlignserveError:
        if reads_files(item):
            return await asyncio.to_thread(prepared, item, self._max_request_bytes)
        return prepared(item, self._max_request_bytes)

    async def _receive(self) -> None:
        try:
            await self._run_connections()
        except Exception as error:  # noqa: BLE001 — raised again by `results`, which waits for it
            async with self._changed:
                self._failure = error
                self._changed.notify_all()

    async def _run_connections(self) -> None:
        attempt = 0
        while await self._wait_for_work():
            answers = self._answers
            error = await self._run_connection()
            if error is None:
                continue
            attempt = attempt + 1 if self._answers == answers else 1
            delay = reconnect_delay_seconds(self._policy, error, attempt, self._clock.random)
            if delay is None:
                raise error
            await self._clock.sleep_async(delay)

    async def _wait_for_work(self) -> bool:
        async with self._changed:
            await self._changed.wait_for(lambda: self._ledger.has_unanswered or self._ledger.is_complete)
            return self._ledger.has_unanswered

    async def _run_connection(self) -> AlignserveError | None:
        call = self._open_call(self._requests())
        try:
            error = await self._take_answers(call)
        except grpc.aio.AioRpcError as cause:
            return _unmasked(error_from_call(cause))
        finally:
            call.cancel()  # does nothing to a call that has ended; otherwise also ends its sender
        if error is None and self._ledger.has_unanswered:
            return UnavailableError("the server ended the stream early", grpc.StatusCode.UNAVAILABLE)
        return error

    async def _take_answers(self, call: Any) -> AlignserveError | None:
        async for response in call:
            failure = item_failure(response)
            if isinstance(failure, UnavailableError):
                # The server cannot work now, for this item or another one: come back, and ask again.
                return failure
            async with self._changed:
                self._ledger.answer(response)
                self._answers += 1
                self._changed.notify_all()
        return None

    async def _requests(self) -> AsyncIterator[pb.StreamInferRequest]:
        yield stream_options(ordered=self._ordered)
        sequence = -1
        while True:
            unsent = await self._wait_for_unsent(sequence)
            if unsent is None:
                return
            sequence, request = unsent
            yield request

    async def _wait_for_unsent(self, after: int) -> tuple[int, pb.StreamInferRequest] | None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._ledger.next_unsent(after) or self._ledger.is_complete)
            return self._ledger.next_unsent(after)


def _unmasked(error: AlignserveError) -> AlignserveError:
    # A message that grpc.aio is sending when the server ends the call makes it forget the server's status and
    # report this one. Opening the stream again shows what the matter is.
    if error.code is grpc.StatusCode.INTERNAL and error.message == "Internal error from Core":
        return UnavailableError("the server ended the stream", grpc.StatusCode.UNAVAILABLE)
    return error


async def _iterated(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncGenerator[Item, None]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
