"""What holds for every call of a client: deadline, metadata, retries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import grpc

from alignserve._clock import Clock
from alignserve._retry import RetryPolicy
from alignserve.errors import CallCancelledError

Metadata = Sequence[tuple[str, str | bytes]]
Priority: TypeAlias = Literal["interactive", "bulk"]

PRIORITIES: tuple[Priority, ...] = get_args(Priority)
_PRIORITY_KEY = "alignserve-priority"

_Value = TypeVar("_Value", bound=str | bytes)


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms that a client was made with, and the arithmetic of deadlines; without one, it is infinite."""

    timeout_seconds: float | None
    metadata: tuple[tuple[str, str | bytes], ...] = field(repr=False)  # may hold a key
    retry: RetryPolicy
    wait_for_ready: bool
    max_in_flight: int
    clock: Clock

    @classmethod
    def of(
        cls,
        *,
        timeout_seconds: float | None,
        metadata: Metadata,
        api_key: str | None,
        priority: Priority,
        retry: RetryPolicy | None,
        wait_for_ready: bool,
        max_in_flight: int,
        clock: Clock | None,
    ) -> Terms:
        """Returns the terms for the arguments of a client."""
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight is {max_in_flight}; at least one request must be in flight")
        return cls(
            timeout_seconds,
            # gRPC refuses upper case
            (
                *((key.lower(), _sendable(key, value)) for key, value in metadata),
                *key_metadata(api_key),
                *priority_metadata(priority),
            ),
            retry or RetryPolicy(),
            wait_for_ready,
            max_in_flight,
            clock or Clock(),
        )

    def deadline(self, timeout_seconds: float | None) -> float:
        """Returns the time by which a call ends that has this timeout, or else the client's."""
        return self.deadline_from(self.clock.monotonic(), timeout_seconds)

    def deadline_from(self, start: float, timeout_seconds: float | None) -> float:
        """Returns the same for a call that began at `start`."""
        seconds = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        return start + (math.inf if seconds is None else seconds)

    def remaining_seconds(self, deadline: float) -> float:
        """Returns the time left."""
        return deadline - self.clock.monotonic()

    # Any: the values differ by key.
    def call_options(self, deadline: float) -> dict[str, Any]:
        """Returns the keyword arguments that gRPC takes with any call."""
        return {"timeout": finite(self.remaining_seconds(deadline)), "metadata": self.metadata}


def key_metadata(api_key: str | None) -> list[tuple[str, str]]:
    """Returns what carries an API key; around it there may be blanks, as files end with a line break."""
    if api_key is None:
        return []
    if not (key := api_key.strip()):
        raise ValueError("the API key is empty")
    return [("authorization", _sendable("authorization", f"Bearer {key}"))]


def priority_metadata(priority: Priority) -> list[tuple[str, str]]:
    """Returns what tells the server the priority of a call; nothing for the default."""
    if priority not in PRIORITIES:
        raise ValueError(f"priority {priority!r} is unknown; use {' or '.join(PRIORITIES)}")
    return [] if priority == "interactive" else [(_PRIORITY_KEY, priority)]


def _sendable(key: str, value: _Value) -> _Value:
    """Returns the value of a header; to a wrong one gRPC answers late, and in asyncio never."""
    if isinstance(value, str) and not (value.isascii() and value.isprintable()):
        raise ValueError(f"metadata {key!r} may hold printable ASCII alone")  # the value may be secret
    return value


def finite(seconds: float) -> float | None:
    """Returns a duration as most waits take it, where `None` is for ever."""
    return None if math.isinf(seconds) else seconds


def client_closed() -> CallCancelledError:
    """Returns the error of a call on a closed client."""
    return CallCancelledError("the client is closed; make another one", grpc.StatusCode.CANCELLED)
