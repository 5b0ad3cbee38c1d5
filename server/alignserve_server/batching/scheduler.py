"""What a free lane runs next: two queues share one device by the time they use. Pure; time is passed in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from alignserve_server.batching.collect import collect
from alignserve_server.batching.queue import Entry, EntryQueue

_SMOOTHING = 0.2  # weight of the newest batch in the running estimate of an entry's device time
_BATCHES_TO_GROW = 100  # full batches between two tries of larger ones after a lack of memory


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How one modality is batched."""

    max_batch_size: int
    overhead: int = 0  # fixed cost of a batch, in units of Entry.length; see `collect`


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries that run together."""

    modality: str
    entries: list[Entry]
    start_time: float  # monotonic seconds
    estimated_seconds: float


class _Lineup:
    """One modality's queue and its account with the device."""

    def __init__(self, policy: BatchPolicy) -> None:
        self.policy = policy
        self.queue = EntryQueue()
        self.max_batch_size = policy.max_batch_size  # halved when the device runs out of memory
        self.full_batches = 0  # finished since that limit was set
        self.used_seconds = 0.0  # the lineup with less goes first
        self.seconds_per_entry = 0.0

    def grow_after(self, batch: Batch) -> None:
        """Counts a batch that has run, and raises a lowered limit when enough full ones have."""
        self.full_batches += len(batch.entries) == self.max_batch_size
        if self.full_batches >= _BATCHES_TO_GROW and self.max_batch_size < self.policy.max_batch_size:
            self.max_batch_size = min(2 * self.max_batch_size, self.policy.max_batch_size)
            self.full_batches = 0


class Scheduler:
    """Work-conserving and fair: what waits runs as soon as a lane is free.

    Of two modalities that both wait, the one that has used less device time goes first, so neither can
    starve the other. One that had nothing waiting starts level with the latest batch: it has saved up no
    credit. This is start-time fair queueing (Goyal et al., 1996), with lineups as flows.
    """

    def __init__(self, policies: Mapping[str, BatchPolicy], max_queue_delay_seconds: float = 0.0) -> None:
        self._lineups = {modality: _Lineup(policy) for modality, policy in policies.items()}
        self._max_queue_delay = max_queue_delay_seconds
        self._level_seconds = 0.0  # what the lineup of the latest batch had used before it

    def waiting(self, modality: str) -> int:
        """Returns how many entries wait."""
        return len(self._lineups[modality].queue)

    def waiting_bytes(self, modality: str) -> int:
        """Returns the bytes of the entries that wait."""
        return self._lineups[modality].queue.size_bytes

    def max_batch_size(self, modality: str) -> int:
        """Returns the most entries that a batch takes now."""
        return self._lineups[modality].max_batch_size

    def push(self, modality: str, entry: Entry) -> None:
        """Adds an entry to the end of its queue."""
        lineup = self._lineups[modality]
        if not lineup.queue:
            lineup.used_seconds = max(lineup.used_seconds, self._level_seconds)
        lineup.queue.push(entry)

    def is_waiting(self, modality: str, entry: Entry) -> bool:
        """Says whether an entry is still in its queue."""
        return entry in self._lineups[modality].queue

    def discard(self, modality: str, entry: Entry) -> bool:
        """Removes an entry whose caller has left; returns False if it is already in a batch."""
        return self._lineups[modality].queue.discard(entry)

    def next_batch(self, now: float, idle_lanes: int = 1, is_draining: bool = False) -> Batch | None:
        """Takes the entries that one free lane should run now, or None if there are none.

        Args:
            now: Monotonic seconds.
            idle_lanes: Lanes that are free, this one included; entries are spread over them.
            is_draining: Holds nothing back for `max_queue_delay`.
        """
        ripe = [
            modality
            for modality, lineup in self._lineups.items()
            if lineup.queue and (is_draining or self._ripe_time(lineup) <= now)
        ]
        if not ripe:
            return None
        modality = min(ripe, key=lambda name: self._lineups[name].used_seconds)
        lineup = self._lineups[modality]
        share = math.ceil(len(lineup.queue) / max(1, idle_lanes))
        entries = collect(lineup.queue, min(lineup.max_batch_size, share), lineup.policy.overhead)
        lineup.queue.take(entries)
        estimate = lineup.seconds_per_entry * len(entries)
        self._level_seconds = lineup.used_seconds
        lineup.used_seconds += estimate
        return Batch(modality, entries, now, estimate)

    def next_ripe_time(self) -> float | None:
        """Returns when an entry that `max_queue_delay` holds back will be due, or None if none waits."""
        times = [self._ripe_time(lineup) for lineup in self._lineups.values() if lineup.queue]
        return min(times, default=None)

    def finish(self, batch: Batch, seconds: float) -> None:
        """Charges the device time that a batch really took."""
        lineup = self._lineups[batch.modality]
        lineup.used_seconds += seconds - batch.estimated_seconds
        per_entry = seconds / len(batch.entries)
        if lineup.seconds_per_entry:
            lineup.seconds_per_entry += _SMOOTHING * (per_entry - lineup.seconds_per_entry)
        else:
            lineup.seconds_per_entry = per_entry
        lineup.grow_after(batch)

    def shrink(self, modality: str, failed_size: int) -> int:
        """Halves the largest batch after one of `failed_size` ran out of memory; returns the new limit.

        An entry that does not fit alone says nothing of batches. The limit doubles again after
        `_BATCHES_TO_GROW` full batches have fitted, since what took the memory may have gone.
        """
        lineup = self._lineups[modality]
        if failed_size > 1:
            lineup.max_batch_size = min(lineup.max_batch_size, failed_size // 2)
            lineup.full_batches = 0
        return lineup.max_batch_size

    def _ripe_time(self, lineup: _Lineup) -> float:
        if self._max_queue_delay == 0.0 or len(lineup.queue) >= lineup.max_batch_size:
            return -math.inf
        return lineup.queue.oldest.enqueue_time + self._max_queue_delay
