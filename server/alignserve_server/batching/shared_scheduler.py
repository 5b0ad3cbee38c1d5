"""Shares the scheduler between the event loop and the lanes: under one lock, on which lanes wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

from alignserve_server.batching.fair_queue import Flow
from alignserve_server.batching.queue import Entry
from alignserve_server.batching.request import Request
from alignserve_server.batching.scheduler import Batch, Scheduler
from alignserve_server.modality import MODALITIES


class SharedScheduler:
    """A thread-safe `Scheduler`: the event loop adds entries, lanes take batches."""

    def __init__(self, scheduler: Scheduler, *, has_parallel_lanes: bool, clock: Callable[[], float]) -> None:
        """Takes over the scheduler.

        Args:
            scheduler: Decides what runs next. Owned by this object from now on.
            has_parallel_lanes: Whether idle lanes share the waiting entries, or one lane takes them all.
            clock: Monotonic seconds.
        """
        self._scheduler = scheduler
        self._has_parallel_lanes = has_parallel_lanes
        self._clock = clock
        self._changed = threading.Condition()  # guards the scheduler and the fields below
        self._running: dict[int, Batch] = {}  # by lane
        self.idle_lanes = 0
        self.is_stopping = False

    @property
    def has_idle_lanes(self) -> bool:
        """Whether lanes wait for entries, rather than for other lanes. Thread-safe."""
        return self.idle_lanes > 0 and not self._scheduler.is_holding_back

    def waiting(self, modality: str) -> int:
        """Returns how many entries wait. Thread-safe."""
        return self._scheduler.waiting(modality)

    def waiting_bytes(self, modality: str) -> int:
        """Returns the bytes of the entries that wait. Thread-safe."""
        return self._scheduler.waiting_bytes(modality)

    def longest_running_seconds(self) -> float:
        """Returns how long the oldest running batch has been in the model; 0 if none is running."""
        with self._changed:
            started = [batch.start_time for batch in self._running.values()]
        return self._clock() - min(started) if started else 0.0

    def extend(self, modality: str, entries: Sequence[Entry]) -> None:
        """Adds entries of one flow, at least one; call `wake_lanes` afterwards."""
        with self._changed:
            self._scheduler.extend(modality, entries)

    def join(self, modality: str, entry: Entry, flow: Flow) -> None:
        """Adds a waiting entry to the line of another flow; call `wake_lanes` afterwards."""
        with self._changed:
            self._scheduler.join(modality, entry, flow)

    def withdraw(self, request: Request, entries: Iterable[Entry]) -> list[Entry]:
        """Removes a request's items from those of its entries that no lane has, and returns these entries."""
        modality, flow = request.modality, request.flow
        with self._changed:
            waiting = [entry for entry in entries if self._scheduler.is_waiting(modality, entry)]
            left = [entry for entry in waiting if entry.leave(request)]
            for entry in left:
                if not entry.is_wanted_by(flow):
                    self._scheduler.leave(modality, entry, flow)
        return left

    def drop(self) -> tuple[dict[str, list[Entry]], list[Entry]]:
        """Removes all waiting entries; returns them by modality, along with the running entries."""
        with self._changed:
            running = [entry for batch in self._running.values() for entry in batch.entries]
            return {modality: self._scheduler.drop(modality) for modality in MODALITIES}, running

    def wake_lanes(self) -> None:
        """Wakes the idle lanes."""
        with self._changed:
            self._changed.notify(self.idle_lanes)

    def stop(self) -> None:
        """Ends each lane once nothing waits; `max_queue_delay` no longer applies."""
        with self._changed:
            self.is_stopping = True
            self._changed.notify_all()

    def take(self, lane: int) -> Batch | None:
        """Waits for a lane's next batch; None ends the lane."""
        with self._changed:
            self.idle_lanes += 1
            while True:
                now = self._clock()
                sharing_lanes = self.idle_lanes if self._has_parallel_lanes else 1
                batch = self._scheduler.next_batch(now, sharing_lanes, self.is_stopping)
                if batch is not None:
                    self.idle_lanes -= 1
                    self._running[lane] = batch
                    return batch
                if self.is_stopping:
                    return None
                due_time = self._scheduler.next_due_time()
                self._changed.wait(None if due_time is None else max(0.0, due_time - now))

    def finish(self, lane: int, batch: Batch, device_seconds: float) -> int | None:
        """Charges a batch that a lane has run; returns the new `max_batch_size` if it has grown."""
        with self._changed:
            has_grown = self._scheduler.finish(batch, device_seconds)
            del self._running[lane]
            if self._scheduler.is_holding_back:
                self._changed.notify()  # the next batch may be another lane's
        return self._scheduler.max_batch_size(batch.modality) if has_grown else None

    def shrink(self, modality: str, failed_size: int) -> int:
        """Lowers the batch limit after a batch of `failed_size` ran out of memory; returns the new limit."""
        with self._changed:
            return self._scheduler.shrink(modality, failed_size)
