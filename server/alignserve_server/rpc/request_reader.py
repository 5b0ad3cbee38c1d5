"""Reads requests: the one message of a unary call, within a timeout and a share, or those of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from alignserve_server.errors import RequestMalformed, RequestTimeout, ServingError
from alignserve_server.rpc.interruptible import InterruptibleBlocks
from alignserve_server.rpc.shares import ConnectionShares

_SETTLING_SECONDS = 0.01  # until gRPC cancels it here, a call that its client cancelled looks the same
_GRACE_SECONDS = 0.25  # on a busy machine, a burst of requests that have arrived takes about as long to read

Context = grpc.aio.ServicerContext[Any, Any]


class RequestReader:
    """Reads the requests of unary calls.

    gRPC does not report how much of a message it has received. So the number of calls that are read at the
    same time is limited; each can use as much memory as the largest request. The others wait, and HTTP/2
    flow control keeps their clients from sending more than a window.
    """

    def __init__(self, uploads: ConnectionShares, timeout_seconds: float) -> None:
        self._uploads = uploads
        self._reading = InterruptibleBlocks(timeout_seconds)

    async def read(self, context: Context, connection: str) -> bytes:
        """Returns the one message of a call.

        Raises:
            RequestMalformed: There is none, or more than one.
            RequestTimeout: It has not arrived in time.
            ServingError: `interrupt` was called meanwhile.
        """
        with self._reading.block():
            share = self._uploads.take_in_turn(connection) or await self._uploads.wait(connection)
            try:
                return await _only_message(context)
            finally:
                share.give_back()

    def interrupt(self, error: Callable[[], ServingError]) -> None:
        """Ends the calls that are being read now with an error each."""
        self._reading.interrupt(error)


class SmallRequestReader:
    """Reads the requests of unary calls that need no key. They are small, so they should arrive immediately.

    A client that sent them slowly could lock out all others. So every call is read at once, and when too many
    have been read for longer than a moment, the oldest ones are ended.
    """

    def __init__(self, max_uploads: int, timeout_seconds: float) -> None:
        self._max_uploads = max_uploads
        self._reading = InterruptibleBlocks(timeout_seconds)
        self._check: asyncio.TimerHandle | None = None

    async def read(self, context: Context, _connection: str) -> bytes:
        """Returns the one message of a call.

        Raises:
            RequestMalformed: There is none, or more than one.
            RequestTimeout: It has not arrived in time, or too many others are waiting.
            ServingError: `interrupt` was called meanwhile.
        """
        with self._reading.block():
            if len(self._reading) > self._max_uploads and self._check is None:
                self._check = asyncio.get_running_loop().call_later(_GRACE_SECONDS, self._end_oldest)
            return await _only_message(context)

    def interrupt(self, error: Callable[[], ServingError]) -> None:
        """Ends the calls that are being read now with an error each."""
        self._reading.interrupt(error)

    def _end_oldest(self) -> None:
        """Ends calls above the limit, but none that has just begun: its request may have arrived, unread."""
        loop = asyncio.get_running_loop()
        latest_begin = loop.time() - _GRACE_SECONDS
        for reading in self._reading.oldest(len(self._reading) - self._max_uploads):
            if reading.begin_time <= latest_begin:
                reading.interrupt(
                    RequestTimeout(
                        "the request did not arrive while others were waiting; send it without delay"
                    )
                )
        is_full = len(self._reading) > self._max_uploads
        self._check = loop.call_later(_GRACE_SECONDS, self._end_oldest) if is_full else None


class Messages:
    """The parsed messages of a stream. Keeps no reference to them, unlike gRPC's iterator."""

    def __init__(self, context: Context, parse: Callable[[bytes], Any]) -> None:
        self._context = context
        self._parse = parse

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> Any:
        """Returns the next message. Raises `RequestMalformed` if it cannot be parsed."""
        message = await self._context.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return self._parse(message)


async def _only_message(context: Context) -> bytes:
    message = await context.read()
    if message is grpc.aio.EOF:
        await asyncio.sleep(_SETTLING_SECONDS)
        raise RequestMalformed("the call ended without a complete message; send exactly one")
    if await context.read() is not grpc.aio.EOF:
        raise RequestMalformed("the call has more than one message; send exactly one")
    only: bytes = message
    return only
