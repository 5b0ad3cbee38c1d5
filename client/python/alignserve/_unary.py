"""Unary calls over a blocking channel: deadlines, retries, and several requests in flight for one call."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import grpc

from alignserve._clock import Clock
from alignserve._requests import Part
from alignserve._retry import RetryPolicy, refusal_delay_seconds
from alignserve.errors import error_at_offset, error_from_call

_Response = TypeVar("_Response")
_Future: TypeAlias = "grpc.Future[_Response]"


@dataclass(frozen=True, slots=True)
class UnaryCaller:
    """Sends requests. Each has its own deadline, which all of its attempts share."""

    policy: RetryPolicy
    metadata: tuple[tuple[str, str | bytes], ...]
    wait_for_ready: bool
    max_in_flight: int
    clock: Clock

    def call(
        self, method: grpc.UnaryUnaryMultiCallable[Any, _Response], request: object, timeout_seconds: float
    ) -> _Response:
        """Sends one request and returns its response.

        Raises:
            AlignserveError: It failed, and no retry was left.
        """
        return self._begin(method, request, 0, timeout_seconds).response()

    def call_parts(
        self,
        method: grpc.UnaryUnaryMultiCallable[Any, _Response],
        parts: Iterable[Part[Any]],  # Any: the three kinds of request travel alike
        timeout_seconds: float,
    ) -> list[_Response]:
        """Sends the parts of one call, `max_in_flight` at a time, and returns their responses in order.

        Raises:
            AlignserveError: One failed, and no retry was left; the others are cancelled.
        """
        in_flight: deque[_Pending[_Response]] = deque()
        responses: list[_Response] = []
        try:
            for part in parts:
                if len(in_flight) == self.max_in_flight:
                    responses.append(in_flight[0].response())
                    in_flight.popleft()
                in_flight.append(self._begin(method, part.request, part.offset, timeout_seconds))
            while in_flight:
                responses.append(in_flight[0].response())
                in_flight.popleft()
        finally:
            for pending in in_flight:
                pending.cancel()
        return responses

    def _begin(
        self,
        method: grpc.UnaryUnaryMultiCallable[Any, _Response],
        request: object,
        offset: int,
        timeout_seconds: float,
    ) -> _Pending[_Response]:
        def send(remaining_seconds: float) -> grpc.Future[_Response]:
            return method.future(
                request,
                timeout=remaining_seconds,
                metadata=self.metadata,
                wait_for_ready=self.wait_for_ready,
            )

        return _Pending(send, offset, timeout_seconds, self.policy, self.clock)


class _Pending(Generic[_Response]):
    """A request that was sent and may have to be sent again."""

    def __init__(
        self,
        send: Callable[[float], _Future[_Response]],
        offset: int,
        timeout_seconds: float,
        policy: RetryPolicy,
        clock: Clock,
    ) -> None:
        self._send = send
        self._offset = offset
        self._policy = policy
        self._clock = clock
        self._deadline = clock.monotonic() + timeout_seconds
        self._future = send(timeout_seconds)

    def response(self) -> _Response:
        attempt = 1
        while True:
            try:
                return self._future.result()
            except grpc.RpcError as error:
                self._clock.sleep(self._delay_or_raise(error, attempt))
            self._future = self._send(self._remaining_seconds())
            attempt += 1

    def cancel(self) -> None:
        self._future.cancel()

    def _delay_or_raise(self, cause: grpc.RpcError, attempt: int) -> float:
        error = error_at_offset(error_from_call(cause), self._offset)
        delay = refusal_delay_seconds(
            self._policy, error, attempt, self._remaining_seconds(), self._clock.random
        )
        if delay is None:
            raise error from cause
        return delay

    def _remaining_seconds(self) -> float:
        return self._deadline - self._clock.monotonic()
