"""What batching needs to know of a call, and where its time went."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from alignserve_server.batching.fair_queue import NOBODY, Flow
from alignserve_server.observability.tracing import CallTrace

_DEADLINE_TOLERANCE_SECONDS = 0.02  # a client's timer starts before ours, so its reset can come first


@dataclass(frozen=True, slots=True)
class CallContext:
    """What the engine needs to know of an RPC or stream item."""

    deadline: float | None = None  # in the event loop's time
    waits_for_room: bool = False  # streams wait, unary calls are refused
    on_admitted: Callable[[], None] | None = None  # called when its items have room
    flow: Flow = NOBODY  # whose turn its items take
    trace: CallTrace | None = None  # if it is followed

    def seconds_left(self) -> float | None:
        """Returns the time until the deadline."""
        return None if self.deadline is None else self.deadline - asyncio.get_running_loop().time()

    def is_expired(self) -> bool:
        """Says whether the deadline has passed, at least by the caller's clock."""
        return (
            self.deadline is not None
            and asyncio.get_running_loop().time() >= self.deadline - _DEADLINE_TOLERANCE_SECONDS
        )


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a call's time went, in seconds, the largest batch that served it, and how much was at hand."""

    preprocess_seconds: float
    queue_seconds: float
    compute_seconds: float
    batch_size: int
    cached_item_count: int
