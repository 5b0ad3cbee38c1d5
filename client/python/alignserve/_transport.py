"""Sends requests over a blocking channel, with deadlines, retries and the origin of cancellations."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import grpc

from alignserve._call_defaults import CallDefaults, client_closed
from alignserve._probe import MAX_PROBE_SECONDS, Cause, Probe, lacks_cause, with_cause
from alignserve._retry import Repeats, RetryPolicy, end_of_call
from alignserve.errors import AlignserveError, CallCancelledError

_T = TypeVar("_T")
_Response = TypeVar("_Response")


@dataclass(frozen=True, slots=True)
class Transport:
    """Sends requests. Each has its own deadline, which all of its attempts share.

    `closed` is set before the channel closes. It ends pauses, explains why gRPC refuses to send, and
    distinguishes a call that this client cancelled from one that the server cancelled. `probe` finds out why
    there is no connection.
    """

    defaults: CallDefaults
    probe: Probe
    closed: threading.Event = field(default_factory=threading.Event)

    def with_defaults(self, defaults: CallDefaults) -> Transport:
        """Returns this transport with other defaults, such as those of one call."""
        return replace(self, defaults=defaults)

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[Any, _Response],
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
                return self.outcome(lambda: self._begin(method, request, deadline, wait_for_ready))
            except AlignserveError as error:
                delay = repeats.delay_seconds(error, self.defaults.remaining_seconds(deadline))
                if delay is None:
                    raise self.explained(error) if explains else error  # noqa: B904 — it has a cause of its own
            self.pause(delay)

    def start(
        self, method: grpc.UnaryUnaryMultiCallable[Any, _Response], request: object, deadline: float
    ) -> grpc.Future[_Response]:
        """Sends one request, once, without waiting for the response; see `outcome`."""
        return self._begin(method.future, request, deadline, None)

    def outcome(self, result: Callable[[], _T]) -> _T:
        """Returns the result of a call.

        Raises:
            CallCancelledError: It was cancelled on this side.
            AlignserveError: It failed.
        """
        try:
            return result()
        except grpc.FutureCancelledError:
            cancelled = CallCancelledError("the call was cancelled", grpc.StatusCode.CANCELLED)
            raise (client_closed() if self.closed.is_set() else cancelled) from None
        except grpc.RpcError as cause:
            if cause.code() is grpc.StatusCode.CANCELLED and self.closed.is_set():
                raise client_closed() from cause
            raise end_of_call(cause) from cause

    def explained(self, error: AlignserveError) -> AlignserveError:
        """Returns the error to raise once no retry follows: it says why the server cannot be reached."""
        if not lacks_cause(error, waits=self.defaults.wait_for_ready) or self.closed.is_set():
            return error
        return with_cause(error, self.cause())

    def cause(self) -> Cause | None:
        """Returns why there is no connection, or `None` if there is one or the cause is not found in time."""
        future = self.probe.begin()
        done, _ = futures.wait([future], MAX_PROBE_SECONDS)
        return future.result() if done else None

    def open_stream(self, method: Callable[..., _T], requests: object, deadline: float) -> _T:
        """Starts a stream; it does not wait for a server, since streams reconnect by themselves."""
        return self._begin(method, requests, deadline, wait_for_ready=False)

    def pause(self, seconds: float) -> None:
        """Waits; raises `CallCancelledError` if the client is closed meanwhile."""
        if self.defaults.clock.wait(self.closed, seconds):
            raise client_closed()

    def _begin(
        self, begin: Callable[..., _T], request: object, deadline: float, wait_for_ready: bool | None
    ) -> _T:
        waits = self.defaults.wait_for_ready if wait_for_ready is None else wait_for_ready
        try:
            return begin(request, wait_for_ready=waits, **self.defaults.call_options(deadline))
        except ValueError:
            if self.closed.is_set():
                raise client_closed() from None
            raise
