"""The queue of one modality: entries that wait for a batch, oldest first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


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


@dataclass(eq=False, slots=True)
class Entry:
    """One input that waits for a batch, on behalf of every item that has the same content."""

    payload: Any  # what the encoder takes; the queue never looks inside
    length: int  # tokens of a text; 1 for an image
    size_bytes: int  # as the first caller sent it
    enqueue_time: float  # monotonic seconds
    key: bytes | None = None  # names the content; None if it is not known to be equal to any other
    is_taken: bool = False  # by a lane, as far as the event loop has heard
    waiters: list[Waiter] = field(default_factory=list, repr=False)


class EntryQueue:
    """Entries in the order of their arrival. Any of them can leave at any time, at no cost to the others."""

    def __init__(self) -> None:
        self._entries: dict[Entry, None] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    @property
    def oldest(self) -> Entry:
        return next(iter(self._entries))

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._entries

    def push(self, entry: Entry) -> None:
        self._entries[entry] = None
        self.size_bytes += entry.size_bytes

    def discard(self, entry: Entry) -> bool:
        """Removes the entry if it still waits, and says whether it did."""
        if entry not in self._entries:
            return False
        del self._entries[entry]
        self.size_bytes -= entry.size_bytes
        return True

    def take(self, entries: Iterable[Entry]) -> None:
        """Removes entries that are known to wait."""
        for entry in entries:
            del self._entries[entry]
            self.size_bytes -= entry.size_bytes
