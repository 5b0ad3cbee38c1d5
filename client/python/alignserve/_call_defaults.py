"""Defaults for every call of a client: deadline, metadata and retries."""

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
# https://www.w3.org/TR/trace-context: neither id is all zeros, and ff is not a version.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?"
)

_Value = TypeVar("_Value", bound=str | bytes)


class CallOptions(TypedDict, total=False):
    """Options of one call, which override the client's.

    Attributes:
        metadata: Sent with this call; replaces the client's value of the same key.
        priority: Priority of this call.
        traceparent: The trace that the call belongs to, in W3C's format; the server's spans join it.
    """

    metadata: Metadata
    priority: Priority
    traceparent: str


@dataclass(frozen=True, slots=True)
class CallDefaults:
    """A client's defaults for its calls, and the arithmetic of deadlines; no deadline is infinity."""

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
    ) -> CallDefaults:
        """Returns the defaults for the arguments of a client."""
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
    ) -> CallDefaults:
        """Returns these defaults, overridden by the options of one call; see `CallOptions`."""
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
        """Returns the deadline of a call that starts now, with this timeout or the client's."""
        return self.deadline_from(self.clock.monotonic(), timeout_seconds)

    def deadline_from(self, start: float, timeout_seconds: float | None) -> float:
        """Returns the deadline of a call that started at `start`."""
        seconds = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        return start + (math.inf if seconds is None else seconds)

    def remaining_seconds(self, deadline: float) -> float:
        """Returns the time left."""
        return deadline - self.clock.monotonic()

    # Any: the values differ by key.
    def call_options(self, deadline: float) -> dict[str, Any]:
        """Returns gRPC's keyword arguments for a call."""
        return {"timeout": finite(self.remaining_seconds(deadline)), "metadata": self.metadata}


def key_metadata(api_key: str | None) -> list[tuple[str, str]]:
    """Returns the metadata for an API key, without surrounding blanks: files end with a line break."""
    if api_key is None:
        return []
    if not (key := api_key.strip()):
        raise ValueError("the API key is empty")
    return [(AUTHORIZATION, _sendable(AUTHORIZATION, f"Bearer {key}"))]


def priority_metadata(priority: Priority) -> list[tuple[str, str]]:
    """Returns the metadata for the priority of a call; empty for the default."""
    if priority not in PRIORITIES:
        raise ValueError(f"priority {priority!r} is unknown; use {' or '.join(PRIORITIES)}")
    return [] if priority == "interactive" else [(_PRIORITY_KEY, priority)]


def _lowered(metadata: Metadata) -> list[tuple[str, str | bytes]]:
    return [(key.lower(), _sendable(key, value)) for key, value in metadata]


def _valid_traceparent(value: str) -> str:
    if not _TRACEPARENT.fullmatch(value):
        raise ValueError(
            f"traceparent {value!r} is not in W3C's format, such as "
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        )
    return value


def _sendable(key: str, value: _Value) -> _Value:
    """Returns a metadata value if it is valid: gRPC reports an invalid one late, and in asyncio never."""
    if isinstance(value, str) and not (value.isascii() and value.isprintable()):
        raise ValueError(f"metadata {key!r} may contain only printable ASCII")  # the value may be secret
    return value


def finite(seconds: float) -> float | None:
    """Returns a duration as most waits take it, where `None` means no limit."""
    return None if math.isinf(seconds) else seconds


def client_closed() -> CallCancelledError:
    """Returns the error of a call on a closed client."""
    return CallCancelledError("the client is closed; create a new one", grpc.StatusCode.CANCELLED)
