"""What a test has scripted: failures, delays and streams that end early."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import grpc

_Scripted = TypeVar("_Scripted")


@dataclass(frozen=True, slots=True)
class ScriptedFailure:
    """A status to answer with.

    Attributes:
        code: The gRPC status code.
        reason: Of `google.rpc.ErrorInfo`.
        message: For people.
        retry_delay_seconds: Of `google.rpc.RetryInfo`, or `None` for none.
        error_id: Of `google.rpc.ErrorInfo`.
        pushback_ms: The trailer `grpc-retry-pushback-ms`, or `None` for what a real server sends.
        field: Path of the field at fault.
        others: Failures of other fields of the same request.
    """

    code: grpc.StatusCode
    reason: str
    message: str
    retry_delay_seconds: float | None = None
    error_id: str = ""
    pushback_ms: int | None = None
    field: str = ""
    others: tuple[ScriptedFailure, ...] = ()

    def at(self, path: str) -> ScriptedFailure:
        """Returns this failure, attributed to a field."""
        return replace(self, field=path)

    @property
    def status_message(self) -> str:
        """Returns the message, prefixed with the field as the server does."""
        return f"{self.field}: {self.message}" if self.field else self.message


class Failed(Exception):
    """Ends a call or an item with a scripted failure or a refusal."""

    def __init__(self, failure: ScriptedFailure) -> None:
        super().__init__(failure)
        self.failure = failure


def invalid(reason: str, path: str, message: str) -> Failed:
    """Returns the refusal of an invalid field."""
    return Failed(ScriptedFailure(grpc.StatusCode.INVALID_ARGUMENT, reason, message).at(path))


def invalid_together(failures: Sequence[ScriptedFailure]) -> Failed:
    """Returns the refusal of several invalid fields, of which there is at least one."""
    return Failed(replace(failures[0], others=tuple(failures[1:])))


class Script:
    """The failures and delays that a test has scripted, which calls use up in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: list[tuple[str | None, ScriptedFailure]] = []  # by method; `None` is any method
        self._delays: list[tuple[str | None, float]] = []
        self._breaks: deque[tuple[int, ScriptedFailure]] = deque()
        self._inputs: dict[str | bytes, Iterator[ScriptedFailure]] = {}

    def fail_next(self, failure: ScriptedFailure, times: int, method: str | None) -> None:
        """Fails the next calls of a method, or of any."""
        with self._lock:
            self._failures.extend(itertools.repeat((method, failure), times))

    def delay_next(self, seconds: float, times: int, method: str | None) -> None:
        """Delays the next calls of a method, or of any."""
        with self._lock:
            self._delays.extend(itertools.repeat((method, seconds), times))

    def fail_input(self, content: str | bytes, failure: ScriptedFailure, times: int | None) -> None:
        """Fails an input, a number of times or always."""
        with self._lock:
            self._inputs[content] = itertools.repeat(failure, *([] if times is None else [times]))

    def break_streams(self, after: int, failure: ScriptedFailure, times: int) -> None:
        """Ends the next streams after a number of answers."""
        with self._lock:
            self._breaks.extend(itertools.repeat((after, failure), times))

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            for scripted in (self._failures, self._delays, self._breaks, self._inputs):
                scripted.clear()

    def next_failure(self, method: str) -> ScriptedFailure | None:
        """Returns the failure of the call that has just arrived, if any."""
        return self._next(self._failures, method)

    def next_delay_seconds(self, method: str) -> float:
        """Returns the delay of the call that has just arrived."""
        return self._next(self._delays, method) or 0.0

    def failure_of(self, content: str | bytes) -> ScriptedFailure | None:
        """Returns the failure of an input, if any."""
        with self._lock:
            return next(self._inputs.get(content, iter(())), None)

    def next_break(self) -> tuple[int, ScriptedFailure] | None:
        """Returns when and how the stream that has just arrived ends early, if it does."""
        with self._lock:
            return self._breaks.popleft() if self._breaks else None

    def _next(self, queue: list[tuple[str | None, _Scripted]], method: str) -> _Scripted | None:
        with self._lock:
            for position, (wanted, scripted) in enumerate(queue):
                if wanted in (None, method):
                    del queue[position]
                    return scripted
            return None
