"""Decides what a free lane runs next: queues share a device by time used. Pure; time is passed in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignserve_server.batching.collect import collect
from alignserve_server.batching.fair_queue import FairQueue, Flow, Priority
from alignserve_server.batching.queue import Entry, EntryQueue
from alignserve_server.batching.widening import Widening

_SMOOTHING = 0.2  # weight of the newest batch in the running estimate of an entry's device time
# Lead in device time of interactive entries over new bulk entries. Without it, each bulk batch that arrives
# at an empty queue would go first, since it has used no time yet.
_HEAD_START_SECONDS = {Priority.INTERACTIVE: 0.0, Priority.BULK: 1.0}
_BATCHES_TO_GROW = 100  # full batches before a larger size is tried again after running out of memory


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How one modality is batched."""

    max_batch_size: int
    overhead: int = 0  # fixed cost of a batch, in units of Entry.length; see `collect`
    limit: int = 0  # upper bound for `max_batch_size` if larger batches prove faster; 0 disables growth


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries that run together."""

    modality: str
    priority: Priority
    entries: list[Entry]
    start_time: float  # monotonic seconds
    estimated_seconds: float


class _ClassQueue:
    """The waiting entries of one modality and priority, and the device time they have used."""

    def __init__(self, modality: str, priority: Priority, queue: FairQueue[Entry]) -> None:
        self.modality = modality
        self.priority = priority
        self.queue = queue
        self.used_seconds = 0.0  # divided by its share; the queue with less goes first

    @property
    def oldest_time(self) -> float:
        """When the entry that has waited longest was queued."""
        return min(entry.enqueue_time for entry in self.queue.heads())

    def charge(self, seconds: float) -> None:
        self.used_seconds += seconds / self.priority.value


class _Batching:
    """The batch size limit of one modality, and the measured time per entry."""

    def __init__(self, policy: BatchPolicy) -> None:
        self.policy = policy
        self.widening = Widening(policy.max_batch_size, policy.limit)
        self.max_batch_size = policy.max_batch_size  # halved when the device runs out of memory
        self.full_batches = 0  # finished since this limit was set
        self.seconds_per_entry = 0.0

    def next_size(self, waiting: int) -> int:
        """Returns the maximum size of the next batch, given the number of waiting entries."""
        is_lowered = self.max_batch_size < self.widening.size
        return self.max_batch_size if is_lowered else self.widening.next_size(waiting)

    def learn_from(self, batch: Batch, seconds: float) -> bool:
        """Records the device time of a batch; returns whether larger batches have proved faster.

        Raises a lowered limit again after enough full batches.
        """
        per_entry = seconds / len(batch.entries)
        if self.seconds_per_entry:
            self.seconds_per_entry += _SMOOTHING * (per_entry - self.seconds_per_entry)
        else:
            self.seconds_per_entry = per_entry
        self.full_batches += len(batch.entries) == self.max_batch_size
        if self.max_batch_size < self.widening.size:
            if self.full_batches >= _BATCHES_TO_GROW:
                self.max_batch_size = min(2 * self.max_batch_size, self.widening.size)
                self.full_batches = 0
            return False
        work = sum(entry.length for entry in batch.entries)
        has_grown = self.widening.learn(len(batch.entries), work, seconds)
        self.max_batch_size = self.widening.size
        return has_grown


class Scheduler:
    """A work-conserving, fair scheduler: waiting entries run as soon as a lane is free.

    Of two queues with waiting entries, the one that has used less device time goes first, so neither modality
    can starve the other. The time that bulk entries use is divided by their share before it is counted: they
    run when nothing else waits, and a little when something does. A queue that was empty starts level with
    the latest batch, since idle time earns no credit; a bulk queue starts a second behind. This is start-time
    fair queueing (Goyal et al., 1996) with queues as flows. Within a queue callers take turns; see
    `FairQueue`. A batch has one priority, so that bulk entries do not make interactive batches longer. An
    entry that several flows want is in the line of each and runs at the first turn that reaches it.
    """

    def __init__(
        self,
        policies: Mapping[str, BatchPolicy],
        max_queue_delay_seconds: float = 0.0,
        lanes_per_modality: int | None = None,
    ) -> None:
        """Starts empty.

        Args:
            policies: By modality.
            max_queue_delay_seconds: How long a free lane waits for more entries.
            lanes_per_modality: See `Encoder`.
        """
        self._batching = {modality: _Batching(policy) for modality, policy in policies.items()}
        self._queues = {modality: EntryQueue() for modality in policies}
        self._class_queues = {
            (modality, priority): _ClassQueue(modality, priority, self._queues[modality].of(priority))
            for modality in policies
            for priority in Priority
        }
        self._max_queue_delay = max_queue_delay_seconds
        self._lanes_per_modality = math.inf if lanes_per_modality is None else lanes_per_modality
        self._running = dict.fromkeys(policies, 0)  # batches, by modality
        self.is_holding_back = False  # whether the queue whose turn it is has all its lanes already
        self._virtual_time = 0.0  # time used by the latest batch's class queue before that batch

    def waiting(self, modality: str) -> int:
        """Returns how many entries wait."""
        return len(self._queues[modality])

    def waiting_bytes(self, modality: str) -> int:
        """Returns the bytes of the entries that wait."""
        return self._queues[modality].size_bytes

    def max_batch_size(self, modality: str) -> int:
        """Returns the current maximum batch size."""
        return self._batching[modality].max_batch_size

    def push(self, modality: str, entry: Entry) -> None:
        """Adds an entry to the line of its flow."""
        self.extend(modality, [entry])

    def extend(self, modality: str, entries: Sequence[Entry]) -> None:
        """Adds entries of one flow, at least one, to its line."""
        self._level(modality, entries[0].flow.priority)
        self._queues[modality].extend(entries)

    def join(self, modality: str, entry: Entry, flow: Flow) -> bool:
        """Adds an entry to the line of another flow; returns False if it is already in a batch."""
        if not self.is_waiting(modality, entry):
            return False
        self._level(modality, flow.priority)
        self._queues[modality].join(entry, flow)
        return True

    def leave(self, modality: str, entry: Entry, flow: Flow) -> None:
        """Removes a waiting entry from the line of a flow, and from the queue once no flow wants it."""
        self._queues[modality].leave(entry, flow)

    def is_waiting(self, modality: str, entry: Entry) -> bool:
        """Returns whether an entry is still in its queue."""
        return entry in self._queues[modality]

    def drop(self, modality: str) -> list[Entry]:
        """Removes all waiting entries and returns them."""
        return self._queues[modality].drop()

    def next_batch(self, now: float, idle_lanes: int = 1, is_draining: bool = False) -> Batch | None:
        """Takes the entries that a free lane should run now; returns None if there are none.

        Args:
            now: Monotonic seconds.
            idle_lanes: Number of free lanes, including this one; entries are spread over them.
            is_draining: Whether to ignore `max_queue_delay_seconds`.
        """
        due = [
            each
            for each in self._class_queues.values()
            if each.queue and (is_draining or self._due_time(each) <= now)
        ]
        self.is_holding_back = False
        if not due:
            return None
        class_queue = min(due, key=lambda each: each.used_seconds)
        if self._running[class_queue.modality] >= self._lanes_per_modality:
            # The other modality would get more than its share, and another lane would only wait.
            self.is_holding_back = True
            return None
        self._running[class_queue.modality] += 1
        batching = self._batching[class_queue.modality]
        share = math.ceil(len(class_queue.queue) / max(1, idle_lanes))
        entries = collect(class_queue.queue, min(batching.next_size(share), share), batching.policy.overhead)
        self._queues[class_queue.modality].take(class_queue.priority, entries)
        estimate = batching.seconds_per_entry * len(entries)
        self._virtual_time = class_queue.used_seconds
        class_queue.charge(estimate)
        return Batch(class_queue.modality, class_queue.priority, entries, now, estimate)

    def next_due_time(self) -> float | None:
        """Returns when an entry held back by `max_queue_delay_seconds` will be due.

        None if no entry waits, or a batch has to end first.
        """
        if self.is_holding_back:
            return None
        times = [self._due_time(each) for each in self._class_queues.values() if each.queue]
        return min(times, default=None)

    def finish(self, batch: Batch, device_seconds: float) -> bool:
        """Charges the device time that a batch actually took; returns whether `max_batch_size` has grown.

        If lanes take turns on the device, this excludes waiting for the other lanes' batches.
        """
        self._running[batch.modality] -= 1
        self._class_queues[batch.modality, batch.priority].charge(device_seconds - batch.estimated_seconds)
        return self._batching[batch.modality].learn_from(batch, device_seconds)

    def shrink(self, modality: str, failed_size: int) -> int:
        """Lowers the batch limit to half of `failed_size`, which ran out of memory; returns the limit.

        An entry that does not fit by itself does not affect the limit. The limit doubles again after
        `_BATCHES_TO_GROW` full batches have fitted, since the memory may be free again.
        """
        batching = self._batching[modality]
        if failed_size > 1:
            batching.max_batch_size = min(batching.max_batch_size, failed_size // 2)
            batching.full_batches = 0
            batching.widening.give_up()
        return batching.max_batch_size

    def _level(self, modality: str, priority: Priority) -> None:
        """Prepares a class queue for a new entry: an empty one starts level with the others."""
        class_queue = self._class_queues[modality, priority]
        if not class_queue.queue:
            start = self._virtual_time + _HEAD_START_SECONDS[priority]
            class_queue.used_seconds = max(class_queue.used_seconds, start)

    def _due_time(self, class_queue: _ClassQueue) -> float:
        if self._max_queue_delay == 0.0:
            return -math.inf
        if len(class_queue.queue) >= self._batching[class_queue.modality].max_batch_size:
            return -math.inf
        return class_queue.oldest_time + self._max_queue_delay
