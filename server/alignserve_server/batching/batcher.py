"""Runs batches: lanes take them from the scheduler, callers get futures.

The event loop's thread puts entries in; one thread per lane takes batches out, so a lane that falls free
starts the next batch without waiting for the loop. A batch is put together at that moment, not before: until
then it can still grow, and entries can still leave. Its entries are already decoded and tokenized, and what
is left to prepare, stacking them, takes a fortieth of a CPU's forward at the most.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.collect import padding_ratio
from alignserve_server.batching.fair_queue import NOBODY, Flow
from alignserve_server.batching.queue import Embedded, Entry, Waiter
from alignserve_server.batching.scheduler import Batch, Scheduler
from alignserve_server.errors import ExpiredInQueue, InferenceFailed, ServingError, ShuttingDown
from alignserve_server.modality import MODALITIES
from alignserve_server.model.encoder import Encoder, OutOfDeviceMemory, has_direction
from alignserve_server.observability.logs import get_logger
from alignserve_server.observability.metrics import Metrics
from alignserve_server.observability.tracing import CallTrace

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Item:
    """One prepared input, as `Batcher.submit` takes it."""

    payload: Any
    length: int
    size_bytes: int
    key: bytes | None = None  # names the content: items of one modality and key share an entry


class Batcher:
    """Batches entries of all callers onto the lanes of one device."""

    def __init__(
        self,
        encoder: Encoder,
        scheduler: Scheduler,
        metrics: Metrics,
        *,
        lanes: int,
        on_widened: Callable[[str, int], object] = lambda _modality, _size: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares the lanes; `start` sets them running.

        Args:
            encoder: The model. Its `encode_*` are called from the lanes' threads.
            scheduler: Decides what runs next. Belongs to this object from now on.
            metrics: Where batches are counted.
            lanes: Batches that run at once.
            on_widened: Told, on the event loop, when batches of a modality have become larger.
            clock: Monotonic seconds.
        """
        self._encode: dict[str, Callable[[Sequence[Any]], NDArray[np.float32]]] = {
            "image": encoder.encode_images,
            "text": encoder.encode_texts,
        }
        self._enter_lane = encoder.enter_lane
        self._has_parallel_lanes = encoder.has_parallel_lanes
        self._scheduler = scheduler
        self._metrics = metrics
        self._on_widened = on_widened
        self._busy_seconds = metrics.device_busy_seconds.labels()
        self._clock = clock
        self._entries: dict[tuple[str, bytes], Entry] = {}  # by content, from submission to result
        self._is_waking = False
        self._changed = threading.Condition()  # guards the scheduler and the fields below
        self._idle_lanes = 0
        self.failed_batches = 0  # in a row, of which no entry succeeded
        self._is_stopping = False
        self._running: dict[int, Batch] = {}  # by lane
        self.has_dead_lane = False
        self._threads = [
            threading.Thread(target=self._run_lane, args=(lane,), name=f"lane-{lane}", daemon=True)
            for lane in range(lanes)
        ]
        self._register_gauges(lanes)

    def start(self) -> None:
        """Starts the lanes. Call it on the event loop that will submit."""
        self._loop = asyncio.get_running_loop()
        for thread in self._threads:
            thread.start()

    async def stop(self, timeout_seconds: float) -> bool:
        """Runs what still waits and ends the lanes; returns False if one is still busy after the timeout."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        end = self._clock() + timeout_seconds
        for thread in self._threads:
            await asyncio.to_thread(thread.join, max(0.0, end - self._clock()))
        return not any(thread.is_alive() for thread in self._threads)

    def submit(
        self,
        modality: str,
        items: Sequence[Item],
        deadline: float | None = None,
        on_taken: Callable[[int], None] = lambda _: None,
        flow: Flow = NOBODY,
        trace: CallTrace | None = None,
    ) -> list[asyncio.Future[Embedded]]:
        """Queues items, of the caller and priority that `flow` names; returns one future for each.

        An item that equals one whose result is not there yet shares its entry and its result. The entry is in
        the line of each flow that wants it, and runs at the first turn that comes. Cancelling a future takes
        its item off the entry, with the last one of a flow the entry out of the flow's line, and with the
        last of all out of the queue. A future fails with `ExpiredInQueue` when `deadline`
        (in the loop's time) comes while its entry still waits, and with `InferenceFailed` when the model
        fails on it. `on_taken` is called on the event loop, with an item's bytes, when a lane takes its
        entry. `trace` is told of the batches.

        Raises:
            ShuttingDown: The lanes are stopping, so nothing would ever run the items.
        """
        if self._is_stopping:
            raise ShuttingDown()
        waiting = [self._join(modality, item, on_taken, flow, trace) for item in items]
        self._settle_together(modality, waiting, deadline)
        return [waiter.future for _, waiter in waiting]

    def longest_running_seconds(self) -> float:
        """Returns how long the oldest batch that is now in the model has been there; 0 if none is."""
        with self._changed:
            started = [batch.start_time for batch in self._running.values()]
        return self._clock() - min(started) if started else 0.0

    def give_up(self, error: Callable[[], ServingError]) -> None:
        """Answers all that wait and all that is in the model with an error each; the lanes go on.

        If a batch ends after all, its results are dropped, since nobody waits for them any more.
        """
        with self._changed:
            entries = [entry for batch in self._running.values() for entry in batch.entries]
            waiting = {modality: self._scheduler.drop(modality) for modality in MODALITIES}
        for modality, dropped in waiting.items():
            for entry in dropped:
                self._forget(modality, entry)
            entries.extend(dropped)
        for entry in entries:
            for waiter in entry.waiters:
                if not waiter.future.done():
                    waiter.future.set_exception(error())

    # --- on the event loop

    def _join(
        self,
        modality: str,
        item: Item,
        on_taken: Callable[[int], None],
        flow: Flow,
        trace: CallTrace | None,
    ) -> tuple[Entry, Waiter]:
        """Adds an item to the entry of its content, or queues a new one."""
        waiter = Waiter(self._loop.create_future(), item.size_bytes, on_taken, flow, trace)
        entry = self._entries.get((modality, item.key)) if item.key is not None else None
        if entry is None:
            entry = self._push(modality, item, flow)
            entry.waiters.append(waiter)
            return entry, waiter
        self._metrics.modalities[modality].embedding_cache_coalesced.inc()
        if entry.is_taken:
            waiter.on_taken(waiter.size_bytes)
        elif not entry.is_wanted_by(flow):
            with self._changed:
                self._scheduler.join(modality, entry, flow)
            self._wake_soon()
        entry.waiters.append(waiter)
        return entry, waiter

    def _push(self, modality: str, item: Item, flow: Flow) -> Entry:
        entry = Entry(item.payload, item.length, item.size_bytes, self._clock(), flow, item.key)
        if item.key is not None:
            self._entries[modality, item.key] = entry
        with self._changed:
            self._scheduler.push(modality, entry)
        self._wake_soon()
        return entry

    def _wake_soon(self) -> None:
        if not self._is_waking:
            # Later in this turn of the loop, so that what else comes in it wakes no lane again.
            self._is_waking = True
            self._loop.call_soon(self._wake_lanes)

    def _wake_lanes(self) -> None:
        self._is_waking = False
        with self._changed:
            self._changed.notify(self._idle_lanes)

    def _settle_together(
        self, modality: str, waiting: list[tuple[Entry, Waiter]], deadline: float | None
    ) -> None:
        """Ties the futures of a call to its deadline, and to their entries if they are cancelled."""
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
        """Takes an item off its entry, unless a lane has the entry; says whether it did."""
        with self._changed:
            if not self._scheduler.is_waiting(modality, entry):
                return False
            entry.waiters.remove(waiter)
            if not entry.is_wanted_by(waiter.flow):
                self._scheduler.leave(modality, entry, waiter.flow)
        if not entry.waiters:
            self._forget(modality, entry)
        return True

    def _forget(self, modality: str, entry: Entry) -> None:
        if entry.key is not None:
            del self._entries[modality, entry.key]

    def _deliver(self, batch: Batch, outcomes: list[Embedded | ServingError], seconds: float) -> None:
        for entry, outcome in zip(batch.entries, outcomes, strict=True):
            self._forget(batch.modality, entry)
            for waiter in entry.waiters:
                if waiter.future.done():  # the caller left while the batch ran
                    continue
                if isinstance(outcome, ServingError):
                    waiter.future.set_exception(outcome.again())
                else:
                    waiter.future.set_result(outcome)
        self._observe(batch, outcomes, seconds)

    def _observe(self, batch: Batch, outcomes: list[Embedded | ServingError], seconds: float) -> None:
        metrics, of_modality = self._metrics, self._metrics.modalities[batch.modality]
        of_modality.batch_size.observe(len(batch.entries))
        of_modality.batch_compute_seconds.observe(seconds, _note_batch(batch, seconds))
        for entry in batch.entries:
            of_modality.queue_wait_seconds.observe(
                batch.start_time - entry.enqueue_time, _exemplar(entry.waiters)
            )
        if batch.modality == "text":
            metrics.batch_padding_ratio.observe(padding_ratio(batch.entries))
        self._busy_seconds.inc(seconds)
        if any(isinstance(outcome, Embedded) for outcome in outcomes):
            metrics.last_forward_timestamp.set(time.time())
            self.failed_batches = 0
        else:
            self.failed_batches += 1

    # --- on a lane's thread

    def _run_lane(self, lane: int) -> None:
        try:
            self._enter_lane()
            while self._run_next(lane):
                pass
        except BaseException as error:  # noqa: BLE001 — a lane that ends unseen would leave its callers waiting
            _log.error("lane_died", lane=lane, exc_info=error)
            self.has_dead_lane = True

    def _run_next(self, lane: int) -> bool:
        """Runs a batch, of which nothing is kept while the lane waits for the next; False ends the lane."""
        batch = self._take(lane)
        if batch is None:
            return False
        self._on_loop(_tell_taken, batch.entries)
        outcomes = self._execute(batch, batch.entries)
        seconds = self._clock() - batch.start_time
        with self._changed:
            has_grown = self._scheduler.finish(batch, seconds)
            del self._running[lane]
        self._on_loop(self._deliver, batch, outcomes, seconds)
        if has_grown:
            size = self._scheduler.max_batch_size(batch.modality)
            self._on_loop(self._on_widened, batch.modality, size)
        return True

    def _on_loop(self, callback: Callable[..., object], *arguments: object) -> None:
        if not self._loop.is_closed():  # a batch can outlast the loop after a stop that did not wait for it
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _take(self, lane: int) -> Batch | None:
        with self._changed:
            self._idle_lanes += 1
            while True:
                now = self._clock()
                sharing_lanes = self._idle_lanes if self._has_parallel_lanes else 1
                batch = self._scheduler.next_batch(now, sharing_lanes, self._is_stopping)
                if batch is not None:
                    self._idle_lanes -= 1
                    self._running[lane] = batch
                    return batch
                if self._is_stopping:
                    return None
                ripe_time = self._scheduler.next_ripe_time()
                self._changed.wait(None if ripe_time is None else max(0.0, ripe_time - now))

    def _execute(self, batch: Batch, entries: list[Entry]) -> list[Embedded | ServingError]:
        """Runs entries of a batch; where that fails, runs each half, so that a bad entry fails alone."""
        try:
            return self._forward(batch, entries)
        except Exception as error:  # noqa: BLE001 — a lane outlives whatever the runtime raises
            reason = self._note(error, batch.modality, len(entries))
            if len(entries) == 1:
                return [_inference_failed(batch.modality, error)]
        # Not inside `except`: the error's traceback keeps what the failed forward had allocated, and the
        # halves need that memory.
        self._metrics.batch_splits.labels(reason).inc()
        middle = len(entries) // 2
        return self._execute(batch, entries[:middle]) + self._execute(batch, entries[middle:])

    def _forward(self, batch: Batch, entries: list[Entry]) -> list[Embedded | ServingError]:
        embeddings = self._encode[batch.modality]([entry.payload for entry in entries])
        if len(embeddings) != len(entries):
            raise RuntimeError(f"the encoder returned {len(embeddings)} rows for {len(entries)} entries")
        seconds = self._clock() - batch.start_time
        sound = has_direction(embeddings)
        return [
            Embedded(embedding, batch.start_time - entry.enqueue_time, seconds, len(batch.entries))
            if is_sound
            else _inference_failed(
                batch.modality, ValueError("the embedding is zero, or has values that are not finite")
            )
            for entry, embedding, is_sound in zip(entries, embeddings, sound, strict=True)
        ]

    def _note(self, error: Exception, modality: str, batch_size: int) -> str:
        """Draws the consequences of a failed forward and names its reason for the metrics."""
        if not isinstance(error, OutOfDeviceMemory):
            return "error"
        with self._changed:
            limit = self._scheduler.shrink(modality, batch_size)
        _log.warning("out_of_device_memory", modality=modality, batch_size=batch_size, new_limit=limit)
        return "out_of_memory"

    def _register_gauges(self, lanes: int) -> None:
        metrics, scheduler = self._metrics, self._scheduler
        metrics.lanes.set(lanes)
        for modality in MODALITIES:
            metrics.queue_entries.labels(modality).set_function(partial(scheduler.waiting, modality))
            metrics.queue_bytes.labels(modality).set_function(partial(scheduler.waiting_bytes, modality))


def _note_batch(batch: Batch, seconds: float) -> dict[str, str] | None:
    """Notes the batch for its calls that are followed; returns what leads from a metric to it."""
    waiting_since = {
        waiter.trace: entry.enqueue_time
        for entry in reversed(batch.entries)  # in the order of arrival, so that the first of a call counts
        for waiter in entry.waiters
        if waiter.trace is not None
    }
    if not waiting_since:
        return None
    end = batch.start_time + seconds
    return CallTrace.note_batch(waiting_since, batch.modality, len(batch.entries), batch.start_time, end)


def _exemplar(waiters: Sequence[Waiter]) -> dict[str, str] | None:
    return next((waiter.trace.exemplar for waiter in waiters if waiter.trace is not None), None)


def _tell_taken(entries: Sequence[Entry]) -> None:
    for entry in entries:
        entry.is_taken = True
        for waiter in entry.waiters:
            waiter.on_taken(waiter.size_bytes)


def _inference_failed(modality: str, error: Exception) -> InferenceFailed:
    error_id = secrets.token_hex(8)
    _log.error("inference_failed", modality=modality, error_id=error_id, exc_info=error)
    return InferenceFailed(
        f"the model failed on this {modality}; report error id {error_id} to the operator",
        metadata={"error_id": error_id},
    )
