"""Runs batches: lanes take them from the scheduler, callers get futures.

The event loop's thread puts entries in; one thread per lane takes batches out, so a lane that falls free
starts the next batch without waiting for the loop. A batch is put together at that moment, not before: until
then it can still grow, and entries can still leave. Its entries are already decoded and tokenized, and what
is left to prepare, stacking them, takes a fortieth of a CPU's forward at the most.
"""

from __future__ import annotations

import asyncio
import math
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
from alignserve_server.batching.queue import Embedded, Entry
from alignserve_server.batching.scheduler import Batch, Scheduler
from alignserve_server.errors import ExpiredInQueue, InferenceFailed, ServingError, ShuttingDown
from alignserve_server.logs import get_logger
from alignserve_server.metrics import MODALITIES, Metrics
from alignserve_server.model.encoder import Encoder, OutOfDeviceMemory

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Item:
    """One prepared input, as `Batcher.submit` takes it."""

    payload: Any
    length: int
    size_bytes: int


class Batcher:
    """Batches entries of all callers onto the lanes of one device."""

    def __init__(
        self,
        encoder: Encoder,
        scheduler: Scheduler,
        metrics: Metrics,
        *,
        lanes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares the lanes; `start` sets them running.

        Args:
            encoder: The model. Its `encode_*` are called from the lanes' threads.
            scheduler: Decides what runs next. Belongs to this object from now on.
            metrics: Where batches are counted.
            lanes: Batches that run at once.
            clock: Monotonic seconds.
        """
        self._encode: dict[str, Callable[[Sequence[Any]], NDArray[np.float32]]] = {
            "image": encoder.encode_images,
            "text": encoder.encode_texts,
        }
        self._enter_lane = encoder.enter_lane
        self._scheduler = scheduler
        self._metrics = metrics
        self._clock = clock
        self._changed = threading.Condition()  # guards the scheduler and the fields below
        self._idle_lanes = 0
        self.failed_batches = 0  # in a row, of which no entry succeeded
        self._is_stopping = False
        self._running_since: dict[int, float] = {}  # lane → start of its batch
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
    ) -> list[asyncio.Future[Embedded]]:
        """Queues items; returns one future for each.

        Cancelling a future takes its entry out of the queue. A future fails with `ExpiredInQueue` when
        `deadline` (in the loop's time) comes while it still waits, and with `InferenceFailed` when the
        model fails on it. `on_taken` is called on the event loop, with an item's bytes, when a lane takes it.

        Raises:
            ShuttingDown: The lanes are stopping, so nothing would ever run the items.
        """
        if self._is_stopping:
            raise ShuttingDown()
        now = self._clock()
        entries = [
            Entry(item.payload, item.length, item.size_bytes, now, self._loop.create_future(), on_taken)
            for item in items
        ]
        with self._changed:
            for entry in entries:
                self._scheduler.push(modality, entry)
            self._changed.notify(len(entries))
        for entry in entries:
            entry.future.add_done_callback(partial(self._leave, modality, entry))
        if deadline is not None:
            self._expire_at(deadline, modality, entries)
        return [entry.future for entry in entries]

    def longest_running_seconds(self) -> float:
        """Returns how long the oldest batch that is now in the model has been there; 0 if none is."""
        with self._changed:
            started = list(self._running_since.values())
        return self._clock() - min(started) if started else 0.0

    # --- on the event loop

    def _expire_at(self, deadline: float, modality: str, entries: list[Entry]) -> None:
        timer = self._loop.call_at(deadline, self._expire, modality, entries)
        remaining = len(entries)

        def count_down(_: asyncio.Future[Embedded]) -> None:
            nonlocal remaining
            remaining -= 1
            if remaining == 0:
                timer.cancel()  # it would keep the entries alive until the deadline

        for entry in entries:
            entry.future.add_done_callback(count_down)

    def _leave(self, modality: str, entry: Entry, done: asyncio.Future[Embedded]) -> None:
        if done.cancelled():
            self._discard(modality, entry)

    def _expire(self, modality: str, entries: list[Entry]) -> None:
        for entry in entries:
            future = entry.future
            if not future.done() and self._discard(modality, entry):
                waited = self._clock() - entry.enqueue_time
                future.set_exception(
                    ExpiredInQueue(f"the deadline passed after {waited:.3f} s in the queue; allow more time")
                )

    def _discard(self, modality: str, entry: Entry) -> bool:
        with self._changed:
            return self._scheduler.discard(modality, entry)

    def _deliver(self, batch: Batch, outcomes: list[Embedded | ServingError], seconds: float) -> None:
        for entry, outcome in zip(batch.entries, outcomes, strict=True):
            future = entry.future
            if future.done():  # the caller left while the batch ran
                continue
            if isinstance(outcome, ServingError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        self._observe(batch, outcomes, seconds)

    def _observe(self, batch: Batch, outcomes: list[Embedded | ServingError], seconds: float) -> None:
        metrics, modality = self._metrics, batch.modality
        metrics.batch_size.labels(modality).observe(len(batch.entries))
        metrics.batch_compute_seconds.labels(modality).observe(seconds)
        wait = metrics.queue_wait_seconds.labels(modality)
        for entry in batch.entries:
            wait.observe(batch.start_time - entry.enqueue_time)
        if modality == "text":
            metrics.batch_padding_ratio.observe(padding_ratio(batch.entries))
        metrics.device_busy_seconds.inc(seconds)
        if any(isinstance(outcome, Embedded) for outcome in outcomes):
            metrics.last_forward_timestamp.set_to_current_time()
            self.failed_batches = 0
        else:
            self.failed_batches += 1

    # --- on a lane's thread

    def _run_lane(self, lane: int) -> None:
        try:
            self._enter_lane()
            while (batch := self._take(lane)) is not None:
                self._run_batch(lane, batch)
        except Exception as error:  # noqa: BLE001 — a lane that ends unseen would leave its callers waiting
            _log.error("lane_died", lane=lane, exc_info=error)
            with self._changed:
                self._running_since[lane] = -math.inf  # the watchdog sees a batch that never ends

    def _run_batch(self, lane: int, batch: Batch) -> None:
        self._on_loop(_tell_taken, batch.entries)
        outcomes = self._execute(batch, batch.entries)
        seconds = self._clock() - batch.start_time
        with self._changed:
            self._scheduler.finish(batch, seconds)
            del self._running_since[lane]
        self._on_loop(self._deliver, batch, outcomes, seconds)

    def _on_loop(self, callback: Callable[..., None], *arguments: object) -> None:
        if not self._loop.is_closed():  # a batch can outlast the loop after a stop that did not wait for it
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _take(self, lane: int) -> Batch | None:
        with self._changed:
            self._idle_lanes += 1
            while True:
                now = self._clock()
                batch = self._scheduler.next_batch(now, self._idle_lanes, self._is_stopping)
                if batch is not None:
                    self._idle_lanes -= 1
                    self._running_since[lane] = now
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
        return [
            _outcome(entry, embedding, batch, seconds)
            for entry, embedding in zip(entries, embeddings, strict=True)
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
        self._metrics.lanes.set(lanes)
        for modality in MODALITIES:
            entries, size_bytes = self._metrics.queue_entries, self._metrics.queue_bytes
            entries.labels(modality).set_function(partial(self._scheduler.waiting, modality))
            size_bytes.labels(modality).set_function(partial(self._scheduler.waiting_bytes, modality))


def _tell_taken(entries: Sequence[Entry]) -> None:
    for entry in entries:
        entry.on_taken(entry.size_bytes)


def _outcome(
    entry: Entry, embedding: NDArray[np.float32], batch: Batch, seconds: float
) -> Embedded | ServingError:
    if not np.isfinite(embedding).all():
        return _inference_failed(batch.modality, ValueError("the embedding has values that are not finite"))
    return Embedded(embedding, batch.start_time - entry.enqueue_time, seconds, len(batch.entries))


def _inference_failed(modality: str, error: Exception) -> InferenceFailed:
    error_id = secrets.token_hex(8)
    _log.error("inference_failed", modality=modality, error_id=error_id, exc_info=error)
    return InferenceFailed(
        f"the model failed on this {modality}; report error id {error_id} to the operator",
        metadata={"error_id": error_id},
    )
