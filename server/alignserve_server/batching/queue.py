"""Entries that wait for a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.fair import NOBODY, FairQueue, Flow
from alignserve_server.tracing import CallTrace


@dataclass(frozen=True, slots=True)
class Embedded:
    """One entry's result and how it came about."""

    embedding: NDArray[np.float32]  # (embedding_dimension,), not normalized
    queue_seconds: float
    compute_seconds: float
    batch_size: int


@dataclass(eq=False, slots=True)
class Waiter:
    """One item of a call that waits for an entry's result."""

    future: asyncio.Future[Embedded]
    size_bytes: int  # as its caller sent it
    on_taken: Callable[[int], None]  # told `size_bytes` when a lane takes the entry
    trace: CallTrace | None = None  # of its call, if that is followed


@dataclass(eq=False, slots=True)
class Entry:
    """One input that waits for a batch, on behalf of every item that has the same content."""

    payload: Any  # what the encoder takes; the queue never looks inside
    length: int  # tokens of a text; 1 for an image
    size_bytes: int  # as the first caller sent it
    enqueue_time: float  # monotonic seconds
    flow: Flow = NOBODY  # of the first caller
    key: bytes | None = None  # names the content; None if it is not known to be equal to any other
    is_taken: bool = False  # by a lane, as far as the event loop has heard
    waiters: list[Waiter] = field(default_factory=list, repr=False)


class EntryQueue:
    """Entries whose callers take turns. Any of them can leave at any time, at no cost to the others."""

    def __init__(self) -> None:
        self._entries: FairQueue[Entry] = FairQueue()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._entries

    @property
    def oldest_time(self) -> float:
        """When the entry that has waited longest was queued."""
        return min(entry.enqueue_time for entry in self._entries.heads())

    def push(self, entry: Entry) -> None:
        self._entries.push(entry.flow, entry)
        self.size_bytes += entry.size_bytes

    def discard(self, entry: Entry) -> bool:
        """Removes the entry if it still waits, and says whether it did."""
        was_there = self._entries.discard(entry)
        if was_there:
            self.size_bytes -= entry.size_bytes
        return was_there

    def take(self, entries: Iterable[Entry]) -> None:
        """Removes entries that are known to wait, to run them."""
        for entry in entries:
            self._entries.take(entry)
            self.size_bytes -= entry.size_bytes
