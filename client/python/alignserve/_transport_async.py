"""Sends requests over an asyncio channel, with deadlines, retries and the origin of cancellations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import grpc

from alignserve._call_defaults import CallDefaults, client_closed
from alignserve._probe import MAX_PROBE_SECONDS, Cause, Probe, lacks_cause, with_cause
from alignserve._retry import Repeats, RetryPolicy, end_of_call
from alignserve.errors import AlignserveError, InternalError

_T = TypeVar("_T")
_Response = TypeVar("_Response")


@dataclass(frozen=True, slots=True)
class AsyncTransport:
    """Sends requests. Each has its own deadline, which all of its attempts share.

    `closed` is set before the channel closes. It ends pauses, and distinguishes a closed client from a
    cancelled task and from a server that cancels. `probe` finds out why there is no connection.
    """

    defaults: CallDefaults
    probe: Probe
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    def with_defaults(self, defaults: CallDefaults) -> AsyncTransport:
        """Returns this transport with other defaults, such as those of one call."""
        return replace(self, defaults=defaults)

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, _Response],
        request: object,
        deadline: float,
        *,
        wait_for_ready: bool | None = None,
        retry: RetryPolicy | None = None,
        explains: bool = True,
    ) -> _Response:
        """Sends one request and returns its response.

        Args:
            method: Of the stub.
            request: The message.
            deadline: Of all attempts together, by the clock.
            wait_for_ready: Overrides the client's.
            retry: Overrides the client's.
            explains: Whether the error says why a server cannot be reached.

        Raises:
            AlignserveError: It failed, and no retries were left.
        """
        repeats = Repeats(retry or self.defaults.retry, self.defaults.clock.random)
        while True:
            try:
                return await self.attempt(method, request, deadline, wait_for_ready=wait_for_ready)
            except AlignserveError as error:
                delay = repeats.delay_seconds(error, self.defaults.remaining_seconds(deadline))
                if delay is None:
                    raise await self.explained(error) if explains else error  # noqa: B904 — it has a cause of its own
            await self.pause(delay)

    async def attempt(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, _Response],
        request: object,
        deadline: float,
        *,
        wait_for_ready: bool | None = None,
    ) -> _Response:
        """Sends one request, once, and returns its response.

        Raises:
            CallCancelledError: The client was closed.
            AlignserveError: It failed.
            asyncio.CancelledError: The task was cancelled, or an interceptor cancelled the call.
        """
        call = self._begin(method, request, deadline, wait_for_ready)
        # A call reports its own end by CancelledError too, so await its status before its response: if
        # awaiting the status raises CancelledError, it is the task that was cancelled.
        try:
            if await call.code() is grpc.StatusCode.CANCELLED and self.closed.is_set():
                raise client_closed()
            response = await call
        except asyncio.CancelledError:
            call.cancel()
            raise
        except grpc.aio.AioRpcError as cause:
            raise end_of_call(cause) from cause
        if response is None:  # grpc.aio returns None for bytes that are not a message of this type
            raise InternalError("the response cannot be read", grpc.StatusCode.INTERNAL)
        return response

    async def explained(self, error: AlignserveError) -> AlignserveError:
        """Returns the error to raise once no retry follows: it says why the server cannot be reached."""
        if not lacks_cause(error, waits=self.defaults.wait_for_ready) or self.closed.is_set():
            return error
        return with_cause(error, await self.cause())

    async def cause(self) -> Cause | None:
        """Returns why there is no connection, or `None` if there is one or the cause is not found in time."""
        future = asyncio.wrap_future(self.probe.begin())
        done, _ = await asyncio.wait([future], timeout=MAX_PROBE_SECONDS)
        return future.result() if done else None

    def open_stream(self, method: Callable[..., _T], requests: object, deadline: float) -> _T:
        """Starts a stream; it does not wait for a server, since streams reconnect by themselves."""
        return self._begin(method, requests, deadline, wait_for_ready=False)

    async def pause(self, seconds: float) -> None:
        """Waits; raises `CallCancelledError` if the client is closed meanwhile."""
        if await self.defaults.clock.wait_async(self.closed, seconds):
            raise client_closed()

    def _begin(
        self, begin: Callable[..., _T], request: object, deadline: float, wait_for_ready: bool | None
    ) -> _T:
        if self.closed.is_set():
            raise client_closed()
        waits = self.defaults.wait_for_ready if wait_for_ready is None else wait_for_ready
        return begin(request, wait_for_ready=waits, **self.defaults.call_options(deadline))
