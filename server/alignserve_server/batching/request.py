"""The items of a call that wait for their results, and the answer that batches build up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.fair_queue import Flow
from alignserve_server.errors import ServingError

Run: TypeAlias = tuple[int, int]  # the number of a lane, and of a batch on it


class Embedded(NamedTuple):
    """The answer to a call's items of one modality, and how they were computed."""

    embeddings: NDArray[np.float32]  # (items, embedding_dimension), not normalized; do not modify them
    queue_seconds: float  # the longest of any item
    compute_seconds: float  # the longest of any item
    batch_size: int  # of the largest batch; 0 if all items were in the cache
    cached_items: int  # how many were in the cache
    runs: frozenset[Run]  # the batches that computed the others


Answer: TypeAlias = Embedded | ServingError


class BatchResult(NamedTuple):
    """What a batch has computed."""

    embeddings: NDArray[np.float32]  # (entries, embedding_dimension)
    start_time: float  # monotonic seconds
    seconds: float  # spent in the model
    run: Run


class Room(Protocol):
    """The room that a request's items take up until a lane takes them."""

    def release(self, items: int, size_bytes: int) -> None:
        """Frees the room of items that a lane has taken. Called on the event loop's thread."""
        ...


class _NoRoom:
    """The room of items that take up none."""

    def release(self, items: int, size_bytes: int) -> None: ...


NO_ROOM: Final[Room] = _NoRoom()


class Request:
    """The items of one call and modality, from submission to their common answer.

    Only for the event loop's thread. Once done it holds no embeddings, since running entries may outlive it.
    """

    __slots__ = (
        "_embeddings",
        "_figures",
        "_missing",
        "_on_done",
        "deadline",
        "enqueue_time",
        "flow",
        "modality",
        "reservation",
        "room",
        "sizes",
    )

    def __init__(
        self,
        modality: str,
        sizes: Sequence[int],
        flow: Flow,
        on_done: Callable[[Answer], object],
        *,
        enqueue_time: float,
        deadline: float | None = None,
        room: Room = NO_ROOM,
        reservation: int = 0,
    ) -> None:
        """Waits for as many results as there are sizes.

        Args:
            modality: Of the items.
            sizes: Bytes of each item, as the caller sent it.
            flow: Whose turns the items take.
            on_done: Takes the answer.
            enqueue_time: Monotonic seconds.
            deadline: Until which items may wait, in the event loop's time.
            room: Where the items have room until a lane takes them.
            reservation: Named in the reports of its batches, unless it is 0.
        """
        self.modality = modality
        self.sizes = sizes
        self.flow = flow
        self.enqueue_time = enqueue_time
        self.deadline = deadline
        self.room = room
        self.reservation = reservation
        self._on_done: Callable[[Answer], object] | None = on_done
        self._missing = len(sizes)
        self._embeddings: NDArray[np.float32] | None = None  # (items, embedding_dimension), filled by batches
        self._figures: list[tuple[float, float, int, Run]] = []  # of each batch but the only one

    @property
    def is_done(self) -> bool:
        """Whether it has been answered, or withdrawn."""
        return self._on_done is None

    def take(self, positions: list[int], batch: BatchResult, rows: list[int]) -> Embedded | None:
        """Takes rows of a batch for the items at these positions; returns the answer once it is complete."""
        waited = max(0.0, batch.start_time - self.enqueue_time)  # it may have joined a running entry
        size = len(batch.embeddings)
        if len(positions) == len(self.sizes):
            embeddings = _in_order(positions, batch.embeddings, rows)
            return Embedded(embeddings, waited, batch.seconds, size, 0, frozenset((batch.run,)))
        if self._embeddings is None:
            self._embeddings = np.empty((len(self.sizes), batch.embeddings.shape[1]), np.float32)
        self._embeddings[positions] = batch.embeddings[rows]
        self._figures.append((waited, batch.seconds, size, batch.run))
        self._missing -= len(positions)
        if self._missing:
            return None
        queue_seconds, compute_seconds, sizes, runs = zip(*self._figures, strict=True)
        return Embedded(
            self._embeddings, max(queue_seconds), max(compute_seconds), max(sizes), 0, frozenset(runs)
        )

    def close(self) -> Callable[[Answer], object] | None:
        """Makes it done, and returns what takes its answer; None if it already was done."""
        on_done, self._on_done = self._on_done, None
        self._embeddings = None
        return on_done


def _in_order(positions: list[int], embeddings: NDArray[np.float32], rows: list[int]) -> NDArray[np.float32]:
    """Returns rows of a batch in the order of the items: the batch itself, or a part of it, if it can."""
    if len(rows) == 1:
        return embeddings[rows[0] : rows[0] + 1]
    order = [0] * len(rows)
    for position, row in zip(positions, rows, strict=True):
        order[position] = row
    first = order[0]
    if order == list(range(first, first + len(order))):
        return embeddings[first : first + len(order)]
    ordered: NDArray[np.float32] = embeddings.take(order, axis=0)
    return ordered
