"""What holds for every call of a client: deadline, metadata, retries."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar, get_args

import grpc

from alignserve._clock import Clock
from alignserve._retry import RetryPolicy
from alignserve.errors import CallCancelledError

Metadata = Sequence[tuple[str, str | bytes]]
Priority: TypeAlias = Literal["interactive", "bulk"]

PRIORITIES: tuple[Priority, ...] = get_args(Priority)
AUTHORIZATION = "authorization"
_PRIORITY_KEY = "alignserve-priority"
_TRACEPARENT_KEY = "traceparent"
# https://www.w3.org/TR/trace-context: neither id is all zeros, and ff is no version.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?"
)

_Value = TypeVar("_Value", bound=str | bytes)


class CallOptions(TypedDict, total=False):
    """What one call may have otherwise than its client.

    Attributes:
        metadata: Sent with this call; a key that the client sends too has this value instead.
        priority: Instead of the client's.
        traceparent: Trace that the call belongs to, in W3C's form; the server's spans become part of it.
    """

    metadata: Metadata
    priority: Priority
    traceparent: str


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
                *_lowered(metadata),
                *key_metadata(api_key),
                *priority_metadata(priority),
            ),
            retry or RetryPolicy(),
            wait_for_ready,
            max_in_flight,
            clock or Clock(),
        )

    def for_call(
        self, *, metadata: Metadata = (), priority: Priority | None = None, traceparent: str | None = None
    ) -> Terms:
        """Returns the terms of one call; see `CallOptions`."""
        own = _lowered(metadata)
        replaced = {key for key, _ in own}
        if priority is not None:
            own += priority_metadata(priority)
            replaced.add(_PRIORITY_KEY)
        if traceparent is not None:
            own.append((_TRACEPARENT_KEY, _valid_traceparent(traceparent)))
            replaced.add(_TRACEPARENT_KEY)
        kept = [(key, value) for key, value in self.metadata if key not in replaced]
        return replace(self, metadata=(*kept, *own))

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
    return [(AUTHORIZATION, _sendable(AUTHORIZATION, f"Bearer {key}"))]


def priority_metadata(priority: Priority) -> list[tuple[str, str]]:
    """Returns what tells the server the priority of a call; nothing for the default."""
    if priority not in PRIORITIES:
        raise ValueError(f"priority {priority!r} is unknown; use {' or '.join(PRIORITIES)}")
    return [] if priority == "interactive" else [(_PRIORITY_KEY, priority)]


def _lowered(metadata: Metadata) -> list[tuple[str, str | bytes]]:
    return [(key.lower(), _sendable(key, value)) for key, value in metadata]


def _valid_traceparent(value: str) -> str:
    if not _TRACEPARENT.fullmatch(value):
        raise ValueError(
            f"traceparent {value!r} is not in W3C's form, such as "
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        )
    return value


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
