"""Requests over an asyncio channel: deadlines, repeats, and whose cancel it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import grpc

from alignserve._probe import LONGEST_SECONDS, Cause, Probe, lacks_cause, with_cause
from alignserve._retry import Repeats, RetryPolicy, end_of_call
from alignserve._terms import Terms, client_closed
from alignserve.errors import AlignserveError, InternalError

_T = TypeVar("_T")
_Response = TypeVar("_Response")


@dataclass(frozen=True, slots=True)
class AsyncCaller:
    """Sends requests. Each has its own deadline, which all of its attempts share.

    `closed` is set before the channel closes: it ends pauses, and tells a closed client from a cancelled task
    and from a server that cancels. `probe` looks for the cause where there is no connection.
    """

    terms: Terms
    probe: Probe
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    def with_terms(self, terms: Terms) -> AsyncCaller:
        """Returns the same for a call that has other terms."""
        return replace(self, terms=terms)

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
            wait_for_ready: Instead of the client's.
            retry: Instead of the client's.
            explains: Whether the error of a server that cannot be reached shall say why.

        Raises:
            AlignserveError: It failed, and no retry was left.
        """
        repeats = Repeats(retry or self.terms.retry, self.terms.clock.random)
        while True:
            try:
                return await self.attempt(method, request, deadline, wait_for_ready=wait_for_ready)
            except AlignserveError as error:
                delay = repeats.delay_seconds(error, self.terms.remaining_seconds(deadline))
                if delay is None:
                    raise await self.explained(error) if explains else error  # noqa: B904 — has its cause
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
        # A call reports its own end by CancelledError too, so its status is asked for before its response:
        # what is raised from waiting for the status is the cancellation of the task.
        try:
            if await call.code() is grpc.StatusCode.CANCELLED and self.closed.is_set():
                raise client_closed()
            response = await call
        except asyncio.CancelledError:
            call.cancel()
            raise
        except grpc.aio.AioRpcError as cause:
            raise end_of_call(cause) from cause
        if response is None:  # grpc.aio's way to say that it is no such message
            raise InternalError("the response cannot be read", grpc.StatusCode.INTERNAL)
        return response

    async def explained(self, error: AlignserveError) -> AlignserveError:
        """Returns the error that is raised for one that no retry follows: it says why there is no server."""
        if not lacks_cause(error, waits=self.terms.wait_for_ready) or self.closed.is_set():
            return error
        return with_cause(error, await self.cause())

    async def cause(self) -> Cause | None:
        """Returns why there is no connection, or `None` if there is one or the cause is not found in time."""
        future = asyncio.wrap_future(self.probe.begin())
        done, _ = await asyncio.wait([future], timeout=LONGEST_SECONDS)
        return future.result() if done else None

    def open_stream(self, method: Callable[..., _T], requests: object, deadline: float) -> _T:
        """Begins a stream; it does not wait for a server, since streams come back by themselves."""
        return self._begin(method, requests, deadline, wait_for_ready=False)

    async def pause(self, seconds: float) -> None:
        """Waits, unless the client is closed meanwhile, which raises `CallCancelledError`."""
        if await self.terms.clock.wait_async(self.closed, seconds):
            raise client_closed()

    def _begin(
        self, begin: Callable[..., _T], request: object, deadline: float, wait_for_ready: bool | None
    ) -> _T:
        if self.closed.is_set():
            raise client_closed()
        waits = self.terms.wait_for_ready if wait_for_ready is None else wait_for_ready
        return begin(request, wait_for_ready=waits, **self.terms.call_options(deadline))
