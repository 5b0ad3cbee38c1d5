"""Calls over an asyncio channel: deadlines, retries, and several requests in flight for one call."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc

from alignserve._requests import Part
from alignserve._retry import refusal_delay_seconds
from alignserve._terms import Terms, client_closed
from alignserve.errors import error_at_offset, error_from_call

_T = TypeVar("_T")
_Response = TypeVar("_Response")


@dataclass(frozen=True, slots=True)
class AsyncCaller:
    """Sends requests. Each has its own deadline, which all of its attempts share.

    `closed` is set before the channel closes: it ends pauses, and tells a closed client from a cancelled
    task.
    """

    terms: Terms
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, _Response],
        request: object,
        timeout_seconds: float | None,
        *,
        offset: int = 0,
        wait_for_ready: bool | None = None,
    ) -> _Response:
        """Sends one request, whose items begin at `offset` of the caller's list, and returns its response.

        Raises:
            AlignserveError: It failed, and no retry was left.
        """
        deadline = self.terms.deadline(timeout_seconds)
        attempt = 1
        while True:
            try:
                return await self._response(self._begun(method, request, deadline, wait_for_ready))
            except grpc.aio.AioRpcError as cause:
                error = error_at_offset(error_from_call(cause), offset)
                delay = refusal_delay_seconds(
                    self.terms.retry,
                    error,
                    attempt,
                    self.terms.remaining_seconds(deadline),
                    self.terms.clock.random,
                )
                if delay is None:
                    raise error from cause
            await self.pause(delay)
            attempt += 1

    async def call_parts(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, _Response],
        parts: AsyncIterable[Part[Any]],  # Any: the three kinds of request travel alike
        timeout_seconds: float | None,
    ) -> list[_Response]:
        """Sends the parts of one call, `max_in_flight` at a time, and returns their responses in order.

        Raises:
            AlignserveError: One failed, and no retry was left; the others are cancelled.
        """
        in_flight: deque[asyncio.Task[_Response]] = deque()
        responses: list[_Response] = []
        try:
            async for part in parts:
                if len(in_flight) == self.terms.max_in_flight:
                    responses.append(await in_flight[0])
                    in_flight.popleft()
                call = self.call(method, part.request, timeout_seconds, offset=part.offset)
                in_flight.append(asyncio.create_task(call))
            while in_flight:
                responses.append(await in_flight[0])
                in_flight.popleft()
        finally:
            for task in in_flight:
                task.cancel()
            await asyncio.gather(*in_flight, return_exceptions=True)
        return responses

    def open_stream(self, method: Callable[..., _T], requests: object, deadline: float) -> _T:
        """Begins a stream; it does not wait for a server, since streams come back by themselves."""
        return self._begun(method, requests, deadline, wait_for_ready=False)

    async def pause(self, seconds: float) -> None:
        """Waits, unless the client is closed meanwhile, which raises `CallCancelledError`."""
        if await self.terms.clock.wait_async(self.closed, seconds):
            raise client_closed()

    async def _response(self, call: grpc.aio.UnaryUnaryCall[Any, _Response]) -> _Response:
        # A call reports its own end by CancelledError too, so its status is asked for before its response:
        # what is raised from waiting for the status is the cancellation of the task.
        try:
            if await call.code() is grpc.StatusCode.CANCELLED and self.closed.is_set():
                raise client_closed()
            return await call
        except asyncio.CancelledError:
            call.cancel()
            raise

    def _begun(
        self, begin: Callable[..., _T], request: object, deadline: float, wait_for_ready: bool | None
    ) -> _T:
        if self.closed.is_set():
            raise client_closed()
        waits = self.terms.wait_for_ready if wait_for_ready is None else wait_for_ready
        return begin(request, wait_for_ready=waits, **self.terms.call_options(deadline))


async def read_parts(parts: Iterator[Part[Any]], *, in_thread: bool) -> AsyncIterator[Part[Any]]:
    """Yields the parts, each made in a worker thread if making it reads files."""
    while True:
        part = await asyncio.to_thread(next, parts, None) if in_thread else next(parts, None)
        if part is None:
            return
        yield part
