"""The items of a stream that have been read but not yielded yet; they outlive a broken connection.

Pure state, without threads, tasks or gRPC; the two streams add the waiting.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from alignserve._items import Item, StreamResult
from alignserve._kinds import with_kind
from alignserve._responses import item_result
from alignserve.errors import AlignserveError
from alignserve.v1 import align_service_pb2 as pb


class InFlightItems:
    """Holds at most `window` items, each from when it is read until its result is taken."""

    def __init__(self, window: int, *, ordered: bool) -> None:
        if window < 1:
            raise ValueError(f"window is {window}; at least one item must be in flight")
        self._window = window
        self._ordered = ordered
        # By sequence number, in the order of reading. Requests are kept, so that they can be sent again.
        self._unanswered: dict[int, tuple[Item, pb.StreamInferRequest]] = {}
        self._early: dict[int, StreamResult] = {}  # with order: those that wait for an earlier item's
        self._results: deque[StreamResult] = deque()  # to be taken
        self._next_sequence = 0
        self._next_result = 0  # with order: the item whose result comes next
        self.is_complete = False  # whether no more items will be read

    @property
    def has_room(self) -> bool:
        """Returns whether another item may be read."""
        return len(self._unanswered) + len(self._early) + len(self._results) < self._window

    @property
    def has_unanswered(self) -> bool:
        """Returns whether an item must be sent, or sent again."""
        return bool(self._unanswered)

    @property
    def is_done(self) -> bool:
        """Returns whether every item was read and answered, and its result taken."""
        return self.is_complete and not (self._unanswered or self._early or self._results)

    def enter(self, item: Item, request: pb.StreamInferRequest | AlignserveError) -> None:
        """Adds an item with its request, which gets a number, or with the reason why it has no request."""
        sequence = self._next_sequence
        self._next_sequence += 1
        if isinstance(request, AlignserveError):
            self._finish(sequence, StreamResult(item, error=request))
        else:
            request.correlation_id = str(sequence)
            self._unanswered[sequence] = item, request

    def next_unsent(self, after: int) -> tuple[int, pb.StreamInferRequest] | None:
        """Returns the first unanswered request numbered above `after`, which is -1 for a new connection."""
        for sequence, (_, request) in self._unanswered.items():
            if sequence > after:
                return sequence, request
        return None

    def answer(self, response: pb.StreamInferResponse) -> None:
        """Records an answer; it is ignored if no item is waiting for it."""
        sequence = int(response.correlation_id) if response.correlation_id.isdecimal() else -1
        if sequence in self._unanswered:
            item, request = self._unanswered.pop(sequence)
            self._finish(sequence, _with_image_kind(item_result(item, response), request))

    def take(self) -> StreamResult | None:
        """Removes and returns the next result, or `None` if none is ready."""
        return self._results.popleft() if self._results else None

    def _finish(self, sequence: int, result: StreamResult) -> None:
        if not self._ordered:
            self._results.append(result)
            return
        self._early[sequence] = result
        while self._next_result in self._early:
            self._results.append(self._early.pop(self._next_result))
            self._next_result += 1


def _with_image_kind(result: StreamResult, request: pb.StreamInferRequest) -> StreamResult:
    """Returns the result with the file type of an image that the server could not read."""
    if result.error is None:
        return result
    kind = request.WhichOneof("request")
    assert kind is not None  # noqa: S101 — every item has one
    return replace(result, error=with_kind(result.error, getattr(request, kind)))
