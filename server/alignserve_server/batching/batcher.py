"""Batches entries: callers get futures, lanes run the waiting entries.

The event loop's thread adds entries and each lane's thread takes batches, so a lane that becomes free starts
the next batch without waiting for the loop. A batch is formed only at that moment: until then it can still
grow, and entries can still be withdrawn. Its entries are already decoded and tokenized. The remaining work,
stacking them, takes at most a fortieth of a forward on the CPU.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from alignserve_server.batching.collect import padding_ratio
from alignserve_server.batching.fair_queue import ANONYMOUS, Flow
from alignserve_server.batching.lane import Lane
from alignserve_server.batching.observer import BatchObserver, SplitReason
from alignserve_server.batching.queue import NO_SLOT, Embedded, Entry, Slot, Waiter
from alignserve_server.batching.scheduler import Batch, Scheduler
from alignserve_server.batching.shared_scheduler import SharedScheduler
from alignserve_server.errors import ExpiredInQueue, ModelStalled, ServingError, ShuttingDown
from alignserve_server.modality import MODALITIES
from alignserve_server.model.encoder import DeviceLost, Encoder
from alignserve_server.observability.batch_report import BatchReport
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)


class Item(NamedTuple):
    """One prepared input, as `Batcher.submit` takes it."""

    payload: Any
    length: int
    size_bytes: int
    key: bytes = b""  # identifies the content: items of one modality and key share an entry; empty if unknown
    slot: Slot = NO_SLOT  # released when a lane takes the item's entry


class Batcher:
    """Batches entries of all callers onto the lanes of one device."""

    def __init__(
        self,
        encoder: Encoder,
        scheduler: Scheduler,
        observer: BatchObserver,
        *,
        lanes: int,
        on_widened: Callable[[str, int], object] = lambda _modality, _size: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares the lanes; `start` runs them.

        Args:
            encoder: The model. Its `encode_*` methods are called on the lanes' threads.
            scheduler: Decides what runs next. Owned by this object from now on.
            observer: Notified of queues and batches.
            lanes: Number of batches that run at once.
            on_widened: Called on the event loop when the batch size of a modality has grown.
            clock: Monotonic seconds.
        """
        self._scheduler = SharedScheduler(
            scheduler, has_parallel_lanes=encoder.has_parallel_lanes, clock=clock
        )
        self._observer = observer
        self._observers = {modality: observer.of(modality) for modality in MODALITIES}
        self._clock = clock
        self._entries: dict[tuple[str, bytes], Entry] = {}  # by content, from submission to result
        self._is_waking = False
        self.device_lost = asyncio.Event()  # set once no batch can run anymore
        self.failed_batches = 0  # consecutive batches in which no entry succeeded
        listener = _OnLoop(
            self._on_loop, self._release_slots, self._deliver, self.lose_device, on_widened, observer
        )
        self._lanes = [Lane(number, encoder, self._scheduler, listener, clock) for number in range(lanes)]
        self._make_visible(lanes if encoder.has_parallel_lanes else 1)

    @property
    def has_dead_lane(self) -> bool:
        """Whether the thread of a lane has ended because of an error."""
        return any(lane.is_dead for lane in self._lanes)

    def start(self) -> None:
        """Starts the lanes. Call this on the event loop that will submit items."""
        self._loop = asyncio.get_running_loop()
        for lane in self._lanes:
            lane.start()

    async def stop(self, timeout_seconds: float) -> bool:
        """Runs the waiting entries and ends the lanes; returns False if one is busy after the timeout."""
        self._scheduler.stop()
        end = self._clock() + timeout_seconds
        for lane in self._lanes:
            await asyncio.to_thread(lane.join, max(0.0, end - self._clock()))
        return not any(lane.is_running for lane in self._lanes)

    def submit(
        self,
        modality: str,
        items: Sequence[Item],
        deadline: float | None = None,
        flow: Flow = ANONYMOUS,
        reservation: int = 0,
    ) -> list[asyncio.Future[Embedded]]:
        """Queues items for the caller and priority that `flow` names; returns one future for each item.

        An item equal to one that still has no result shares its entry and its result. The entry is in the
        line of each flow that wants it and runs when the first of them has its turn. Cancelling a future
        removes its item from the entry. The entry leaves a flow's line with the flow's last item, and the
        queue with the last item of all flows. A future fails with `ExpiredInQueue` if `deadline` (in the
        loop's time) passes while its entry still waits, and with `InferenceFailed` if the model fails on it.
        Batches are reported under `reservation`, unless that is 0.

        Raises:
            ShuttingDown: The lanes are stopping and would never run the items.
            ModelStalled: The device is lost.
        """
        if self.device_lost.is_set():
            raise _device_lost()
        if self._scheduler.is_stopping:
            raise ShuttingDown()
        waiting = [self._join(modality, item, flow, reservation) for item in items]
        self._settle_together(modality, waiting, deadline)
        return [waiter.future for _, waiter in waiting]

    def longest_running_seconds(self) -> float:
        """Returns how long the oldest running batch has been in the model; 0 if none is running."""
        return self._scheduler.longest_running_seconds()

    def give_up(self, error: Callable[[], ServingError]) -> None:
        """Fails all waiting and running entries, each with its own error; the lanes keep running.

        If a running batch ends after all, its results are dropped because no caller waits for them.
        """
        waiting, entries = self._scheduler.drop()
        for modality, dropped in waiting.items():
            for entry in dropped:
                self._forget(modality, entry)
            entries.extend(dropped)
        for entry in entries:
            for waiter in entry.waiters:
                if not waiter.future.done():
                    waiter.future.set_exception(error())

    def lose_device(self, error: DeviceLost) -> None:
        """Fails all entries and refuses more: only a new process can use the device. Logs the first error."""
        if not self.device_lost.is_set():
            self.device_lost.set()
            _log.error("device_lost", reason=str(error).partition("\n")[0])
            self.give_up(_device_lost)

    def _join(self, modality: str, item: Item, flow: Flow, reservation: int) -> tuple[Entry, Waiter]:
        """Adds an item to the entry with its content, or queues a new entry."""
        waiter = Waiter(self._loop.create_future(), item.slot, flow, reservation)
        entry = self._entries.get((modality, item.key)) if item.key else None
        if entry is None:
            entry = self._push(modality, item, flow)
            entry.waiters.append(waiter)
            return entry, waiter
        self._observers[modality].coalesced()
        if entry.is_taken:
            waiter.slot.release()
        elif not entry.is_wanted_by(flow):
            self._scheduler.join(modality, entry, flow)
            self._wake_soon()
        entry.waiters.append(waiter)
        return entry, waiter

    def _push(self, modality: str, item: Item, flow: Flow) -> Entry:
        entry = Entry(item.payload, item.length, item.size_bytes, self._clock(), flow, item.key)
        if item.key:
            self._entries[modality, item.key] = entry
        self._scheduler.push(modality, entry)
        self._wake_soon()
        return entry

    def _wake_soon(self) -> None:
        if not self._is_waking:
            # Deferred to the end of this loop iteration, so that its entries wake the lanes only once.
            self._is_waking = True
            self._loop.call_soon(self._wake_lanes)

    def _wake_lanes(self) -> None:
        self._is_waking = False
        self._scheduler.wake_lanes()

    def _settle_together(
        self, modality: str, waiting: list[tuple[Entry, Waiter]], deadline: float | None
    ) -> None:
        """Expires the futures of a call at its deadline, and withdraws the items of cancelled ones."""
        timer = None if deadline is None else self._loop.call_at(deadline, self._expire, modality, waiting)
        remaining = len(waiting)

        def settled(entry: Entry, waiter: Waiter, future: asyncio.Future[Embedded]) -> None:
            nonlocal remaining
            remaining -= 1
            if remaining == 0 and timer is not None:
                timer.cancel()  # it would keep the entries alive until the deadline
            if future.cancelled():
                self._withdraw(modality, entry, waiter)

        for entry, waiter in waiting:
            waiter.future.add_done_callback(partial(settled, entry, waiter))

    def _expire(self, modality: str, waiting: list[tuple[Entry, Waiter]]) -> None:
        for entry, waiter in waiting:
            if not waiter.future.done() and self._withdraw(modality, entry, waiter):
                waited = self._clock() - entry.enqueue_time
                waiter.future.set_exception(
                    ExpiredInQueue(f"the deadline passed after {waited:.3f} s in the queue; allow more time")
                )

    def _withdraw(self, modality: str, entry: Entry, waiter: Waiter) -> bool:
        """Removes an item from its entry unless a lane has the entry; returns whether it did."""
        has_left = self._scheduler.withdraw(modality, entry, waiter)
        if has_left and not entry.waiters:
            self._forget(modality, entry)
        return has_left

    def _forget(self, modality: str, entry: Entry) -> None:
        if entry.key:
            del self._entries[modality, entry.key]

    def _on_loop(self, callback: Callable[..., object], *arguments: object) -> None:
        if not self._loop.is_closed():  # a batch outlives the loop if `stop` timed out
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _release_slots(self, batch: Batch) -> None:
        for entry in batch.entries:
            entry.is_taken = True
            for waiter in entry.waiters:
                waiter.slot.release()

    def _deliver(
        self, batch: Batch, outcomes: list[Embedded | ServingError], seconds: float, device_seconds: float
    ) -> None:
        for entry, outcome in zip(batch.entries, outcomes, strict=True):
            self._forget(batch.modality, entry)
            for waiter in entry.waiters:
                if waiter.future.done():  # the caller cancelled while the batch ran
                    continue
                if isinstance(outcome, ServingError):
                    waiter.future.set_exception(outcome.again())
                else:
                    waiter.future.set_result(outcome)
        has_succeeded = any(isinstance(outcome, Embedded) for outcome in outcomes)
        self.failed_batches = 0 if has_succeeded else self.failed_batches + 1
        self._observer.batch_ended(_report(batch, seconds, device_seconds, has_succeeded=has_succeeded))

    def _make_visible(self, concurrent_batches: int) -> None:
        self._observer.has_lanes(concurrent_batches)
        for modality, observer in self._observers.items():
            observer.watch_queue(
                partial(self._scheduler.waiting, modality), partial(self._scheduler.waiting_bytes, modality)
            )


@dataclass(frozen=True, slots=True)
class _OnLoop:
    """Forwards the lanes' notifications to the event loop; see `LaneListener`."""

    run: Callable[..., None]  # runs a callback with its arguments on the event loop
    release_slots: Callable[[Batch], None]
    deliver: Callable[[Batch, list[Embedded | ServingError], float, float], None]
    lose_device: Callable[[DeviceLost], None]
    on_widened: Callable[[str, int], object]
    observer: BatchObserver

    def batch_taken(self, batch: Batch) -> None:
        self.run(self.release_slots, batch)

    def batch_split(self, reason: SplitReason) -> None:
        self.observer.batch_split(reason)

    def batch_ended(
        self, batch: Batch, outcomes: list[Embedded | ServingError], seconds: float, device_seconds: float
    ) -> None:
        self.run(self.deliver, batch, outcomes, seconds, device_seconds)

    def device_lost(self, error: DeviceLost) -> None:
        self.run(self.lose_device, error)

    def widened(self, modality: str, size: int) -> None:
        self.run(self.on_widened, modality, size)


def _device_lost() -> ModelStalled:
    return ModelStalled("the device has failed; retry on another server", retry_delay_seconds=1.0)


def _report(batch: Batch, seconds: float, device_seconds: float, *, has_succeeded: bool) -> BatchReport:
    entries = batch.entries
    waiting_since = {
        waiter.reservation: entry.enqueue_time
        for entry in reversed(entries)  # reversed, so that the earliest entry of a call counts
        for waiter in entry.waiters
        if waiter.reservation
    }
    return BatchReport(
        batch.modality,
        batch.start_time,
        seconds,
        device_seconds,
        [batch.start_time - entry.enqueue_time for entry in entries],
        padding_ratio(entries) if batch.modality == "text" else None,
        has_succeeded,
        waiting_since,
        [_first_sampled(entry) for entry in entries] if waiting_since else (),
    )


def _first_sampled(entry: Entry) -> int:
    return next((waiter.reservation for waiter in entry.waiters if waiter.reservation), 0)
