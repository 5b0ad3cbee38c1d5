"""Calls over a blocking channel: deadlines, retries, and several requests in flight for one call."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc

from alignserve._requests import Part
from alignserve._retry import refusal_delay_seconds
from alignserve._terms import Terms, client_closed
from alignserve.errors import CallCancelledError, error_at_offset, error_from_call

_T = TypeVar("_T")
_Response = TypeVar("_Response")


@dataclass(frozen=True, slots=True)
class Caller:
    """Sends requests. Each has its own deadline, which all of its attempts share.

    `closed` is set before the channel closes: it ends pauses, and tells why gRPC refuses to send.
    """

    terms: Terms
    closed: threading.Event = field(default_factory=threading.Event)

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[Any, _Response],
        request: object,
        timeout_seconds: float | None,
        *,
        wait_for_ready: bool | None = None,
    ) -> _Response:
        """Sends one request and returns its response.

        Raises:
            AlignserveError: It failed, and no retry was left.
        """
        deadline = self.terms.deadline(timeout_seconds)
        send = self._sender(method, request, deadline, wait_for_ready)
        return self._first_success(itertools.repeat(send), 0, deadline)

    def call_parts(
        self,
        method: grpc.UnaryUnaryMultiCallable[Any, _Response],
        parts: Iterator[Part[Any]],  # Any: the three kinds of request travel alike
        timeout_seconds: float | None,
    ) -> list[_Response]:
        """Sends the parts of one call, `max_in_flight` at a time, and returns their responses in order.

        Raises:
            AlignserveError: One failed, and no retry was left; the others are cancelled.
        """
        first_two = list(itertools.islice(parts, 2))
        if len(first_two) == 1:
            return [self.call(method, first_two[0].request, timeout_seconds)]  # a future costs as much again
        in_flight: deque[tuple[Part[Any], float, grpc.Future[_Response]]] = deque()
        responses: list[_Response] = []
        try:
            for part in itertools.chain(first_two, parts):
                if len(in_flight) == self.terms.max_in_flight:
                    responses.append(self._response(method, *in_flight[0]))
                    in_flight.popleft()
                deadline = self.terms.deadline(timeout_seconds)
                future = self._sender(method.future, part.request, deadline)()
                in_flight.append((part, deadline, future))
            while in_flight:
                responses.append(self._response(method, *in_flight[0]))
                in_flight.popleft()
        finally:
            for *_, sent in in_flight:
                sent.cancel()
        return responses

    def open_stream(self, method: Callable[..., _T], requests: object, deadline: float) -> _T:
        """Begins a stream; it does not wait for a server, since streams come back by themselves."""
        return self._sender(method, requests, deadline, wait_for_ready=False)()

    def pause(self, seconds: float) -> None:
        """Waits, unless the client is closed meanwhile, which raises `CallCancelledError`."""
        if self.terms.clock.wait(self.closed, seconds):
            raise client_closed()

    def _response(
        self,
        method: grpc.UnaryUnaryMultiCallable[Any, _Response],
        part: Part[Any],
        deadline: float,
        future: grpc.Future[_Response],
    ) -> _Response:
        again = self._sender(method, part.request, deadline)
        attempts = itertools.chain([future.result], itertools.repeat(again))
        return self._first_success(attempts, part.offset, deadline)

    def _first_success(self, attempts: Iterable[Callable[[], _T]], offset: int, deadline: float) -> _T:
        for number, attempt in enumerate(attempts, start=1):
            try:
                return attempt()
            except grpc.FutureCancelledError:
                raise CallCancelledError("the call was cancelled", grpc.StatusCode.CANCELLED) from None
            except grpc.RpcError as cause:
                error = error_at_offset(error_from_call(cause), offset)
                delay = refusal_delay_seconds(
                    self.terms.retry,
                    error,
                    number,
                    self.terms.remaining_seconds(deadline),
                    self.terms.clock.random,
                )
                if delay is None:
                    raise error from cause
            self.pause(delay)
        raise AssertionError  # attempts have no end

    def _sender(
        self, begin: Callable[..., _T], request: object, deadline: float, wait_for_ready: bool | None = None
    ) -> Callable[[], _T]:
        waits = self.terms.wait_for_ready if wait_for_ready is None else wait_for_ready

        def send() -> _T:
            try:
                return begin(request, wait_for_ready=waits, **self.terms.call_options(deadline))
            except ValueError:
                if self.closed.is_set():
                    raise client_closed() from None
                raise

        return send
