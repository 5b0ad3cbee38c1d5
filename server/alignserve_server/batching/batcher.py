"""Batches requests: callers get an answer per request, lanes run the waiting entries.

The event loop's thread adds entries and each lane's thread takes batches, so a lane that becomes free starts
the next batch without waiting for the loop. A batch is formed only at that moment: until then it can still
grow, and entries can still be withdrawn. Its entries are already decoded and tokenized. The remaining work,
stacking them, takes at most a fortieth of a forward on the CPU.

A request has one answer, one deadline and one room. It takes the scheduler's lock and wakes the lanes once,
and the event loop wakes up at most twice for each batch, so the cost of an item is small in large requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from alignserve_server.batching.backend import PreparedItems
from alignserve_server.batching.collect import padding_ratio
from alignserve_server.batching.deadlines import Deadlines
from alignserve_server.batching.fair_queue import ANONYMOUS, Flow
from alignserve_server.batching.lane import Lane, Outcome
from alignserve_server.batching.loop_calls import LoopCalls
from alignserve_server.batching.observer import BatchObserver, SplitReason
from alignserve_server.batching.queue import Entry
from alignserve_server.batching.request import NO_ROOM, Answer, BatchResult, Request, Room, Run
from alignserve_server.batching.scheduler import Batch, Scheduler
from alignserve_server.batching.shared_scheduler import SharedScheduler
from alignserve_server.errors import ExpiredInQueue, ModelStalled, ServingError, ShuttingDown
from alignserve_server.modality import MODALITIES
from alignserve_server.model.encoder import TOKEN_BYTES, DeviceLost, Encoder
from alignserve_server.observability.batch_report import BatchReport
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)

# gRPC hands over the calls of a burst one by one, about one in two iterations of the event loop. A lane woken
# by the first would compete with the loop for the interpreter and run it by itself. So idle lanes are woken
# only after some iterations without a new request, which take 0.01 ms each if nothing else happens.
_QUIET_ITERATIONS = 6
_MAX_ITERATIONS = 32  # if requests keep coming
_MAX_WAKING_SECONDS = 0.002  # if iterations take long, because other calls are expensive


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
        # By modality and content, from submission to result.
        self._entries: dict[str, dict[bytes, Entry]] = {modality: {} for modality in MODALITIES}
        self._requests: dict[Request, Sequence[Entry]] = {}  # until they are done, and their items' entries
        self._is_waking = False
        self._iterations = 0  # of the event loop, since entries wait for idle lanes
        self._waking_since = 0.0  # in the loop's time
        self._quiet_iterations = 0  # since the last request
        self.device_lost = asyncio.Event()  # set once no batch can run anymore
        self.failed_batches = 0  # consecutive batches in which no entry succeeded
        listener = _OnLoop(
            self._on_loop, self._release_room, self._deliver, self.lose_device, on_widened, observer
        )
        self._lanes = [Lane(number, encoder, self._scheduler, listener, clock) for number in range(lanes)]
        self._make_visible(lanes if encoder.has_parallel_lanes else 1)

    @property
    def has_dead_lane(self) -> bool:
        """Whether the thread of a lane has ended because of an error."""
        return any(lane.is_dead for lane in self._lanes)

    @property
    def has_idle_lanes(self) -> bool:
        """Whether lanes wait for entries, rather than for other lanes."""
        return self._scheduler.has_idle_lanes

    def start(self) -> None:
        """Starts the lanes. Call this on the event loop that will submit items."""
        self._loop = asyncio.get_running_loop()
        self._calls = LoopCalls(self._loop)
        self._deadlines = Deadlines(self._loop, self._expire)
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
        items: PreparedItems,
        on_done: Callable[[Answer], object],
        *,
        deadline: float | None = None,
        flow: Flow = ANONYMOUS,
        room: Room = NO_ROOM,
        reservation: int = 0,
    ) -> Request:
        """Queues items for the caller and priority that `flow` names, and calls back with their answer.

        An item equal to one that still has no result shares its entry and its result. The entry is in the
        line of each flow that wants it and runs when the first of them has its turn. It leaves a flow's line
        with the flow's last item, and the queue with the last item of all flows.

        The answer is an error as soon as one of the items has one, and the others leave the queue:
        `ExpiredInQueue` if `deadline` (in the loop's time) passes while an item waits, `InferenceFailed` if
        the model fails on one, and, before this returns, `ShuttingDown` or `ModelStalled` if no lane would
        ever run them.

        Args:
            modality: Of the items.
            items: At least one. Equal ones, by their keys, share an entry; an empty key equals no other.
            on_done: Called once on the loop's thread, unless `withdraw` comes before.
            deadline: Until which items may wait, in the event loop's time.
            flow: Whose turns the items take.
            room: Where the items have room until a lane takes them.
            reservation: Under which batches are reported; 0 for none.
        """
        request = Request(
            modality,
            items.sizes,
            flow,
            on_done,
            enqueue_time=self._clock(),
            deadline=deadline,
            room=room,
            reservation=reservation,
        )
        if self.device_lost.is_set():
            self._answer(request, _device_lost())
        elif self._scheduler.is_stopping:
            self._answer(request, ShuttingDown())
        else:
            self._requests[request] = self._enter(request, items)
            self._deadlines.add(request)
        return request

    def withdraw(self, request: Request) -> None:
        """Removes the items of a request that still wait. Its answer never comes, unless it already has."""
        if not request.is_done:
            self._leave(request)
            self._close(request)

    def longest_running_seconds(self) -> float:
        """Returns how long the oldest running batch has been in the model; 0 if none is running."""
        return self._scheduler.longest_running_seconds()

    def give_up(self, error: Callable[[], ServingError]) -> None:
        """Fails all waiting and running requests, each with its own error; the lanes keep running.

        If a running batch ends after all, its results are dropped because no caller waits for them.
        """
        waiting, entries = self._scheduler.drop()
        for modality, dropped in waiting.items():
            self._forget(modality, dropped)
            entries.extend(dropped)
        for entry in entries:
            for request, _ in entry.places():
                self._answer(request, error())

    def lose_device(self, error: DeviceLost) -> None:
        """Fails all entries and refuses more: only a new process can use the device. Logs the first error."""
        if not self.device_lost.is_set():
            self.device_lost.set()
            _log.error("device_lost", reason=str(error).partition("\n")[0])
            self.give_up(_device_lost)

    def _enter(self, request: Request, items: PreparedItems) -> list[Entry]:
        """Queues an entry for each item, or shares that with its content; returns them in order."""
        known = self._entries[request.modality]
        flow, now = request.flow, request.enqueue_time
        entries: list[Entry] = []
        new: list[Entry] = []
        lengths = _lengths(request.modality, items)
        columns = zip(items.payloads, lengths, items.sizes, items.keys, strict=True)
        for position, (payload, length, size_bytes, key) in enumerate(columns):
            entry = known.get(key)
            if entry is None:
                entry = Entry(payload, length, size_bytes, now, flow, key, request, position)
                if key:
                    known[key] = entry
                new.append(entry)
            else:
                self._share(entry, request, position)
            entries.append(entry)
        if new:
            self._scheduler.extend(request.modality, new)
            self._wake_soon()
        return entries

    def _share(self, entry: Entry, request: Request, position: int) -> None:
        self._observers[request.modality].coalesced()
        if entry.is_taken:
            request.room.release(1, request.sizes[position])
        elif not entry.is_wanted_by(request.flow):
            self._scheduler.join(request.modality, entry, request.flow)
            self._wake_soon()
        entry.share(request, position)

    def _wake_soon(self) -> None:
        self._quiet_iterations = 0
        if not self._is_waking:
            self._is_waking = True
            self._iterations = 0
            self._waking_since = self._loop.time()
            self._loop.call_soon(self._wake_lanes)

    def _wake_lanes(self) -> None:
        self._iterations += 1
        self._quiet_iterations += 1
        is_due = (
            self._quiet_iterations >= _QUIET_ITERATIONS
            or self._iterations >= _MAX_ITERATIONS
            or self._loop.time() - self._waking_since >= _MAX_WAKING_SECONDS
        )
        if is_due or not self.has_idle_lanes:  # a lane that becomes idle looks for entries first
            self._is_waking = False
            self._scheduler.wake_lanes()
        else:
            self._loop.call_soon(self._wake_lanes)

    def _expire(self, request: Request) -> None:
        """Ends a request whose deadline has passed, unless lanes have all of its items."""
        if self._leave(request):
            waited = self._clock() - request.enqueue_time
            message = f"the deadline passed after {waited:.3f} s in the queue; allow more time"
            self._answer(request, ExpiredInQueue(message))

    def _leave(self, request: Request) -> bool:
        """Removes a request's items from the entries that no lane has; returns whether there were any."""
        left = self._scheduler.withdraw(request, self._requests[request])
        self._forget(request.modality, [entry for entry in left if entry.request is None])
        return bool(left)

    def _forget(self, modality: str, entries: Iterable[Entry]) -> None:
        known = self._entries[modality]
        for entry in entries:
            if entry.key:
                del known[entry.key]

    def _close(self, request: Request) -> Callable[[Answer], object] | None:
        self._requests.pop(request, None)
        self._deadlines.discard(request)
        return request.close()

    def _answer(self, request: Request, answer: Answer) -> None:
        """Gives a request its answer, unless it is done."""
        on_done = self._close(request)
        if on_done is not None:
            try:
                on_done(answer)
            except Exception as error:  # noqa: BLE001 — the others of the batch get their answers
                message = "cannot take the answer of a request"
                self._loop.call_exception_handler({"message": message, "exception": error})

    def _on_loop(self, callback: Callable[..., object], *arguments: object) -> None:
        self._calls.add(callback, *arguments)

    def _release_room(self, batch: Batch) -> None:
        """Frees the room of the items of a batch that a lane has taken."""
        freed: dict[Request, list[int]] = {}  # the size of each item
        for entry in batch.entries:
            entry.is_taken = True
            request = entry.request
            if request in freed:
                freed[request].append(request.sizes[entry.position])
            elif request is not None:  # None if all of its callers have left
                freed[request] = [request.sizes[entry.position]]  # its own: equal texts may differ in bytes
            for other, position in entry.others or ():
                freed.setdefault(other, []).append(other.sizes[position])
        for request, sizes in freed.items():
            request.room.release(len(sizes), sum(sizes))

    def _deliver(
        self, batch: Batch, outcome: Outcome, run: Run, seconds: float, device_seconds: float
    ) -> None:
        """Hands the outcome of a batch to its requests, once it is counted."""
        self._forget(batch.modality, batch.entries)
        parts = _parts(batch.entries)
        result = BatchResult(outcome.embeddings, batch.start_time, seconds, run)
        has_succeeded = len(outcome.errors) < len(batch.entries)
        self.failed_batches = 0 if has_succeeded else self.failed_batches + 1
        try:
            report = _report(batch, parts, seconds, device_seconds, has_succeeded=has_succeeded)
            self._observer.batch_ended(report)
        finally:
            for row, error in outcome.errors.items():
                for request, _ in batch.entries[row].places():
                    self._fail(request, error)
            for request, (positions, rows) in parts.items():
                answer = None if request.is_done else request.take(positions, result, rows)
                if answer is not None:
                    self._answer(request, answer)

    def _fail(self, request: Request, error: ServingError) -> None:
        if not request.is_done:
            self._leave(request)
            self._answer(request, error.again())

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
    release_room: Callable[[Batch], None]
    deliver: Callable[[Batch, Outcome, Run, float, float], None]
    lose_device: Callable[[DeviceLost], None]
    on_widened: Callable[[str, int], object]
    observer: BatchObserver

    def batch_taken(self, batch: Batch) -> None:
        self.run(self.release_room, batch)

    def batch_split(self, reason: SplitReason) -> None:
        self.observer.batch_split(reason)

    def batch_ended(
        self, batch: Batch, outcome: Outcome, run: Run, seconds: float, device_seconds: float
    ) -> None:
        self.run(self.deliver, batch, outcome, run, seconds, device_seconds)

    def device_lost(self, error: DeviceLost) -> None:
        self.run(self.lose_device, error)

    def widened(self, modality: str, size: int) -> None:
        self.run(self.on_widened, modality, size)


def _lengths(modality: str, items: PreparedItems) -> Sequence[int]:
    """Returns the numbers of tokens of texts; 1 for images."""
    if modality == "text":
        return [len(token_ids) // TOKEN_BYTES for token_ids in items.payloads]
    return [1] * len(items.payloads)


_Parts: TypeAlias = dict[Request, tuple[list[int], list[int]]]  # positions in a request, and rows of a batch


def _parts(entries: Sequence[Entry]) -> _Parts:
    """Returns which items of which requests the rows of a batch are for."""
    parts: _Parts = {}
    for row, entry in enumerate(entries):
        request = entry.request
        if request in parts:
            positions, rows = parts[request]
            positions.append(entry.position)
            rows.append(row)
        elif request is not None:  # None if all of its callers have left
            parts[request] = [entry.position], [row]
        for other, position in entry.others or ():
            positions, rows = parts.setdefault(other, ([], []))
            positions.append(position)
            rows.append(row)
    return parts


def _device_lost() -> ModelStalled:
    return ModelStalled("the device has failed; retry on another server", retry_delay_seconds=1.0)


def _report(
    batch: Batch, requests: Iterable[Request], seconds: float, device_seconds: float, *, has_succeeded: bool
) -> BatchReport:
    entries, start = batch.entries, batch.start_time
    waiting_since = {
        request.reservation: min(request.enqueue_time, start) for request in requests if request.reservation
    }
    return BatchReport(
        batch.modality,
        start,
        seconds,
        device_seconds,
        [start - entry.enqueue_time for entry in entries],
        padding_ratio(entries) if batch.modality == "text" else None,
        has_succeeded,
        waiting_since,
        [_first_sampled(entry) for entry in entries] if waiting_since else (),
    )


def _first_sampled(entry: Entry) -> int:
    return next((request.reservation for request, _ in entry.places() if request.reservation), 0)
