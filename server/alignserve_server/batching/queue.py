"""Queues of entries that wait for a batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from alignserve_server.batching.fair_queue import ANONYMOUS, FairQueue, Flow, Priority
from alignserve_server.batching.request import Request


class Entry:
    """One input that waits for a batch on behalf of all items with the same content.

    Most entries have a single item, so the first one is kept apart from the others.
    """

    __slots__ = (
        "enqueue_time",
        "flow",
        "is_taken",
        "key",
        "length",
        "others",
        "payload",
        "position",
        "request",
        "size_bytes",
    )

    def __init__(
        self,
        payload: Any,
        length: int,
        size_bytes: int,
        enqueue_time: float,
        flow: Flow = ANONYMOUS,
        key: bytes = b"",
        request: Request | None = None,
        position: int = 0,
    ) -> None:
        """Starts with one item, that at a position of a request.

        Args:
            payload: As the encoder takes it; opaque to the queue.
            length: Number of tokens of a text; 1 for an image.
            size_bytes: As the first caller sent it.
            enqueue_time: Monotonic seconds.
            flow: Of the first caller.
            key: Identifies the content; empty if the entry cannot be shared.
            request: Whose item it is.
            position: Of the item in its request.
        """
        self.payload = payload
        self.length = length
        self.size_bytes = size_bytes
        self.enqueue_time = enqueue_time
        self.flow = flow
        self.key = key
        self.request = request
        self.position = position
        self.others: list[tuple[Request, int]] | None = None  # requests and positions of further equal items
        self.is_taken = False  # whether the event loop knows that a lane has the entry

    def places(self) -> Iterator[tuple[Request, int]]:
        """Yields the items that wait for the result, each as its request and its position there."""
        if self.request is not None:
            yield self.request, self.position
        if self.others is not None:
            yield from self.others

    def is_wanted_by(self, flow: Flow) -> bool:
        """Returns whether an item of the flow waits for the result."""
        return any(request.flow == flow for request, _ in self.places())

    def share(self, request: Request, position: int) -> None:
        """Adds an equal item."""
        if self.others is None:
            self.others = []
        self.others.append((request, position))

    def leave(self, request: Request) -> bool:
        """Removes the items of a request; returns whether there were any."""
        places = list(self.places())
        kept = [place for place in places if place[0] is not request]
        if len(kept) == len(places):
            return False
        if kept:
            (self.request, self.position), *others = kept
            self.others = others or None
        else:
            self.request = self.others = None
        return True


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
        self.extend([entry])

    def extend(self, entries: Sequence[Entry]) -> None:
        """Adds entries of one flow, at least one, to its line."""
        flow = entries[0].flow
        self._entries.update(dict.fromkeys(entries))
        self.size_bytes += sum([entry.size_bytes for entry in entries])
        self._lines[flow.priority].extend(flow, entries)

    def join(self, entry: Entry, flow: Flow) -> None:
        """Adds a waiting entry to the line of another flow that wants it."""
        self._lines[flow.priority].push(flow, entry)

    def leave(self, entry: Entry, flow: Flow) -> None:
        """Removes a waiting entry from the line of a flow that no longer wants it."""
        self._lines[flow.priority].leave(flow, entry)
        if not any(entry in line for line in self._lines.values()):
            self._forget([entry])

    def discard(self, entry: Entry) -> bool:
        """Removes the entry if it still waits; returns whether it did."""
        if entry not in self._entries:
            return False
        for line in self._lines.values():
            line.discard(entry)
        self._forget([entry])
        return True

    def take(self, priority: Priority, entries: Collection[Entry]) -> None:
        """Removes entries of a priority to run them, and charges the flows whose turns serve them."""
        for other, line in self._lines.items():
            if other is priority:
                line.take(entries)
            elif not line.isdisjoint(entries):
                for entry in entries:
                    line.discard(entry)
        self._forget(entries)

    def drop(self) -> list[Entry]:
        """Removes all entries and returns them in order of arrival."""
        dropped = list(self._entries)
        for entry in dropped:
            self.discard(entry)
        return dropped

    def _forget(self, entries: Collection[Entry]) -> None:
        for entry in entries:
            del self._entries[entry]
        self.size_bytes -= sum([entry.size_bytes for entry in entries])
