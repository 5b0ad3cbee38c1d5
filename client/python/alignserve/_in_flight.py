"""The items of a stream that have been read but not yielded yet; they outlive a broken connection.

Pure state, without threads, tasks or gRPC; the two streams add the waiting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from alignserve._items import Item, StreamResult
from alignserve._kinds import with_kind
from alignserve._responses import item_result
from alignserve.errors import AlignserveError
from alignserve.v1 import align_service_pb2 as pb


@dataclass(slots=True)
class _Entry:
    item: Item
    request: pb.StreamInferRequest | None  # kept until it is answered, so that it can be sent again
    result: StreamResult | None = None


class InFlightItems:
    """Holds at most `window` items, each from when it is read until its result is taken."""

    def __init__(self, window: int, *, ordered: bool) -> None:
        if window < 1:
            raise ValueError(f"window is {window}; at least one item must be in flight")
        self._window = window
        self._ordered = ordered
        self._entries: dict[int, _Entry] = {}  # by sequence number, in the order of reading
        self._next_sequence = 0
        self.is_complete = False  # whether no more items will be read

    @property
    def has_room(self) -> bool:
        """Returns whether another item may be read."""
        return len(self._entries) < self._window

    @property
    def has_unanswered(self) -> bool:
        """Returns whether an item must be sent, or sent again."""
        return any(entry.request is not None for entry in self._entries.values())

    @property
    def is_done(self) -> bool:
        """Returns whether every item was read and answered, and its result taken."""
        return self.is_complete and not self._entries

    def enter(self, item: Item, request: pb.StreamInferRequest | AlignserveError) -> None:
        """Adds an item with its request, which gets a number, or with the reason why it has no request."""
        if isinstance(request, AlignserveError):
            entry = _Entry(item, None, StreamResult(item, error=request))
        else:
            request.correlation_id = str(self._next_sequence)
            entry = _Entry(item, request)
        self._entries[self._next_sequence] = entry
        self._next_sequence += 1

    def next_unsent(self, after: int) -> tuple[int, pb.StreamInferRequest] | None:
        """Returns the first unanswered request numbered above `after`, which is -1 for a new connection."""
        for sequence, entry in self._entries.items():
            if sequence > after and entry.request is not None:
                return sequence, entry.request
        return None

    def answer(self, response: pb.StreamInferResponse) -> None:
        """Records an answer; it is ignored if no item is waiting for it."""
        sequence = int(response.correlation_id) if response.correlation_id.isdecimal() else -1
        entry = self._entries.get(sequence)
        if entry is None or entry.request is None:
            return
        entry.result = _with_image_kind(item_result(entry.item, response), entry.request)
        entry.request = None

    def take(self) -> StreamResult | None:
        """Removes and returns the next result, or `None` if none is ready."""
        for sequence, entry in self._entries.items():
            if entry.result is not None:
                del self._entries[sequence]
                return entry.result
            if self._ordered:
                return None
        return None


def _with_image_kind(result: StreamResult, request: pb.StreamInferRequest) -> StreamResult:
    """Returns the result with the file type of an image that the server could not read."""
    if result.error is None:
        return result
    kind = request.WhichOneof("request")
    assert kind is not None  # noqa: S101 — every item has one
    return replace(result, error=with_kind(result.error, getattr(request, kind)))
