"""Requests over a blocking channel: deadlines, repeats, and whose cancel it was."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import grpc

from alignserve._probe import LONGEST_SECONDS, Cause, Probe, lacks_cause, with_cause
from alignserve._retry import Repeats, RetryPolicy, end_of_call
from alignserve._terms import Terms, client_closed
from alignserve.errors import AlignserveError, CallCancelledError

_T = TypeVar("_T")
_Response = TypeVar("_Response")


@dataclass(frozen=True, slots=True)
class Caller:
    """Sends requests. Each has its own deadline, which all of its attempts share.

    `closed` is set before the channel closes: it ends pauses, and tells why gRPC refuses to send, and whose
    cancel it was that ended a call. `probe` looks for the cause where there is no connection.
    """

    terms: Terms
    probe: Probe
    closed: threading.Event = field(default_factory=threading.Event)

    def with_terms(self, terms: Terms) -> Caller:
        """Returns the same for a call that has other terms."""
        return replace(self, terms=terms)

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
            wait_for_ready: Instead of the client's.
            retry: Instead of the client's.
            explains: Whether the error of a server that cannot be reached shall say why.

        Raises:
            AlignserveError: It failed, and no retry was left.
        """
        repeats = Repeats(retry or self.terms.retry, self.terms.clock.random)
        while True:
            try:
                return self.outcome(lambda: self._begin(method, request, deadline, wait_for_ready))
            except AlignserveError as error:
                delay = repeats.delay_seconds(error, self.terms.remaining_seconds(deadline))
                if delay is None:
                    raise self.explained(error) if explains else error  # noqa: B904 — has its cause
            self.pause(delay)

    def start(
        self, method: grpc.UnaryUnaryMultiCallable[Any, _Response], request: object, deadline: float
    ) -> grpc.Future[_Response]:
        """Sends one request, once, and returns without its response; see `outcome`."""
        return self._begin(method.future, request, deadline, None)

    def outcome(self, result: Callable[[], _T]) -> _T:
        """Returns what a call gives.

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
        """Returns the error that is raised for one that no retry follows: it says why there is no server."""
        if not lacks_cause(error, waits=self.terms.wait_for_ready) or self.closed.is_set():
            return error
        return with_cause(error, self.cause())

    def cause(self) -> Cause | None:
        """Returns why there is no connection, or `None` if there is one or the cause is not found in time."""
        future = self.probe.begin()
        done, _ = futures.wait([future], LONGEST_SECONDS)
        return future.result() if done else None

    def open_stream(self, method: Callable[..., _T], requests: object, deadline: float) -> _T:
        """Begins a stream; it does not wait for a server, since streams come back by themselves."""
        return self._begin(method, requests, deadline, wait_for_ready=False)

    def pause(self, seconds: float) -> None:
        """Waits, unless the client is closed meanwhile, which raises `CallCancelledError`."""
        if self.terms.clock.wait(self.closed, seconds):
            raise client_closed()

    def _begin(
        self, begin: Callable[..., _T], request: object, deadline: float, wait_for_ready: bool | None
    ) -> _T:
        waits = self.terms.wait_for_ready if wait_for_ready is None else wait_for_ready
        try:
            return begin(request, wait_for_ready=waits, **self.terms.call_options(deadline))
        except ValueError:
            if self.closed.is_set():
                raise client_closed() from None
            raise
