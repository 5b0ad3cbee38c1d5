"""Queues of entries that wait for a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.fair_queue import ANONYMOUS, FairQueue, Flow, Priority

Run: TypeAlias = tuple[int, int]  # the number of a lane, and of a batch on it


class Embedded(NamedTuple):
    """One entry's result and how it was computed."""

    embedding: NDArray[np.float32]  # (embedding_dimension,), not normalized
    queue_seconds: float
    compute_seconds: float
    batch_size: int  # 0 if it was in the cache
    run: Run | None = None  # that computed it; None if it was in the cache

    @classmethod
    def from_cache(cls, embedding: NDArray[np.float32]) -> Embedded:
        """Builds the result of an entry whose embedding was in the cache."""
        return cls(embedding, 0.0, 0.0, 0)

    @property
    def is_cached(self) -> bool:
        """Whether the embedding was in the cache."""
        return self.batch_size == 0


class Slot(Protocol):
    """The room that one item takes up until a lane takes it."""

    def release(self) -> None:
        """Frees the room; no effect if it is already free. Called on the event loop's thread."""
        ...


class _NoSlot:
    """The slot of an item that takes up no room."""

    def release(self) -> None: ...


NO_SLOT: Final[Slot] = _NoSlot()


@dataclass(eq=False, slots=True)
class Waiter:
    """One item of a call that waits for an entry's result."""

    future: asyncio.Future[Embedded]
    slot: Slot  # released when a lane takes the entry
    flow: Flow  # the flow whose turn it waits for
    reservation: int = 0  # named in batch reports; 0 if the call is not sampled


@dataclass(eq=False, slots=True)
class Entry:
    """One input that waits for a batch on behalf of all items with the same content."""

    payload: Any  # as the encoder takes it; opaque to the queue
    length: int  # number of tokens of a text; 1 for an image
    size_bytes: int  # as the first caller sent it
    enqueue_time: float  # monotonic seconds
    flow: Flow = ANONYMOUS  # of the first caller
    key: bytes = b""  # identifies the content; empty if the entry cannot be shared
    is_taken: bool = False  # whether the event loop knows that a lane has the entry
    waiters: list[Waiter] = field(default_factory=list, repr=False)

    def is_wanted_by(self, flow: Flow) -> bool:
        """Returns whether an item of the flow waits for the result."""
        return any(waiter.flow == flow for waiter in self.waiters)


class EntryQueue:
    """The entries of one modality, each in the line of every flow that wants it.

    Flows of one priority take turns; the scheduler decides which priority goes first. A caller can leave at
    any time without delaying the others.
    """

    def __init__(self) -> None:
        self._lines: dict[Priority, FairQueue[Entry]] = {priority: FairQueue() for priority in Priority}
        self._entries: dict[Entry, None] = {}
        self.size_bytes = 0  # counts each entry once, however many flows want it

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._entries

    def of(self, priority: Priority) -> FairQueue[Entry]:
        """Returns the entries that flows of a priority want, in the order of their turns."""
        return self._lines[priority]

    def push(self, entry: Entry) -> None:
        """Adds an entry to the line of its flow."""
        self._entries[entry] = None
        self.size_bytes += entry.size_bytes
        self.join(entry, entry.flow)

    def join(self, entry: Entry, flow: Flow) -> None:
        """Adds a waiting entry to the line of another flow that wants it."""
        self._lines[flow.priority].push(flow, entry)

    def leave(self, entry: Entry, flow: Flow) -> None:
        """Removes a waiting entry from the line of a flow that no longer wants it."""
        self._lines[flow.priority].leave(flow, entry)
        if not any(entry in line for line in self._lines.values()):
            self._forget(entry)

    def discard(self, entry: Entry) -> bool:
        """Removes the entry if it still waits; returns whether it did."""
        if entry not in self._entries:
            return False
        for line in self._lines.values():
            line.discard(entry)
        self._forget(entry)
        return True

    def take(self, priority: Priority, entries: Collection[Entry]) -> None:
        """Removes entries of a priority to run them, and charges the flows whose turns serve them."""
        self._lines[priority].take(entries)
        for line in self._lines.values():
            if line:
                for entry in entries:
                    line.discard(entry)
        for entry in entries:
            self._forget(entry)

    def drop(self) -> list[Entry]:
        """Removes all entries and returns them in order of arrival."""
        dropped = list(self._entries)
        for entry in dropped:
            self.discard(entry)
        return dropped

    def _forget(self, entry: Entry) -> None:
        del self._entries[entry]
        self.size_bytes -= entry.size_bytes
