"""Unary calls over an asyncio channel: deadlines, retries, and several requests in flight for one call."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from alignserve._clock import Clock
from alignserve._requests import Part
from alignserve._retry import RetryPolicy, refusal_delay_seconds
from alignserve.errors import error_at_offset, error_from_call

_Response = TypeVar("_Response")


@dataclass(frozen=True, slots=True)
class AsyncUnaryCaller:
    """Sends requests. Each has its own deadline, which all of its attempts share."""

    policy: RetryPolicy
    metadata: tuple[tuple[str, str | bytes], ...]
    wait_for_ready: bool
    max_in_flight: int
    clock: Clock

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, _Response],
        request: object,
        timeout_seconds: float,
        *,
        offset: int = 0,
    ) -> _Response:
        """Sends one request, whose items begin at `offset` of the caller's list, and returns its response.

        Raises:
            AlignserveError: It failed, and no retry was left.
        """
        deadline = self.clock.monotonic() + timeout_seconds
        remaining, attempt = timeout_seconds, 1
        while True:
            try:
                return await method(
                    request, timeout=remaining, metadata=self.metadata, wait_for_ready=self.wait_for_ready
                )
            except grpc.aio.AioRpcError as cause:
                error = error_at_offset(error_from_call(cause), offset)
                remaining = deadline - self.clock.monotonic()
                delay = refusal_delay_seconds(self.policy, error, attempt, remaining, self.clock.random)
                if delay is None:
                    raise error from cause
            await self.clock.sleep_async(delay)
            remaining = deadline - self.clock.monotonic()
            attempt += 1

    async def call_parts(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, _Response],
        parts: AsyncIterable[Part[Any]],  # Any: the three kinds of request travel alike
        timeout_seconds: float,
    ) -> list[_Response]:
        """Sends the parts of one call, `max_in_flight` at a time, and returns their responses in order.

        Raises:
            AlignserveError: One failed, and no retry was left; the others are cancelled.
        """
        in_flight: deque[asyncio.Task[_Response]] = deque()
        responses: list[_Response] = []
        try:
            async for part in parts:
                if len(in_flight) == self.max_in_flight:
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


async def read_parts(parts: Iterator[Part[Any]], *, in_thread: bool) -> AsyncIterator[Part[Any]]:
    """Yields the parts, each made in a worker thread if making it reads files."""
    while True:
        part = await asyncio.to_thread(next, parts, None) if in_thread else next(parts, None)
        if part is None:
            return
        yield part
