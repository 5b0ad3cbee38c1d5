"""Simulates a server: the real admission and scheduler on virtual time, with measured times."""

from __future__ import annotations

import heapq
import itertools
import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.admission import AdmissionController, QueueLimits, Reservation
from alignserve_server.batching.queue import Entry
from alignserve_server.batching.scheduler import Batch, BatchPolicy, Scheduler
from alignserve_server.errors import QueueFull
from alignserve_server.modality import MODALITIES
from alignserve_server.planning.curve import Curve

_MAX_BACKLOG_RATIO = 0.03  # of the total time; with thousands of calls, more is significant


class Arrival(NamedTuple):
    """A call of one item."""

    time: float  # seconds
    modality: str
    length: int  # tokens of a text; 1 for an image


@dataclass(frozen=True, slots=True)
class Replica:
    """A server: its speed and its settings. It has one process, or a device process and fronts."""

    curve: Curve
    policies: Mapping[str, BatchPolicy]
    decode_threads: int
    max_queue_size: int
    max_queue_delay_seconds: float = 0.0
    front_processes: int = 0  # if there are any, the curve has `front_calls`


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of the calls."""

    latencies: NDArray[np.float64]  # (answered calls,), seconds
    refused: int
    device_busy: float  # share of the time of the batches that it can run at once, from 0 to 1
    cores_busy: float  # share of the cores' time
    mean_batch: Mapping[str, float]  # by modality, of those that occurred
    seconds: float  # until the last answer
    backlog_seconds: float  # of these, after the last call arrived

    @property
    def is_saturated(self) -> bool:
        """Whether calls arrived faster than they were answered: the wait grows until calls are refused."""
        return self.refused > 0 or self.backlog_seconds > _MAX_BACKLOG_RATIO * self.seconds

    def latency(self, percent: float) -> float:
        """Returns a percentile in seconds; infinite if no call was answered."""
        return float(np.percentile(self.latencies, percent)) if len(self.latencies) else math.inf


def simulate(replica: Replica, arrivals: Iterable[Arrival]) -> Outcome:
    """Simulates calls, at least one, in order of their times, on an idle replica, until all are answered."""
    return _Simulation(replica).run(arrivals)


class _Cores:
    """Cores shared by all threads: with more threads than cores, all slow down equally.

    Virtual time slows down by the same factor, so in virtual time each job ends as if it had its own cores.
    A forward on another device slows down too, since its thread sometimes needs a core; the simulation
    exaggerates this slightly.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._virtual = 0.0
        self._threads = 0.0  # that need a core
        self._running: list[tuple[float, int, float, Callable[[], None]]] = []  # ordered by virtual end time
        self._numbers = itertools.count()
        self.now = 0.0
        self.used_seconds = 0.0

    @property
    def next_time(self) -> float:
        """When the next job ends, if no other starts before."""
        if not self._running:
            return math.inf
        return self.now + (self._running[0][0] - self._virtual) * self._slowdown

    def run(self, seconds: float, threads: float, then: Callable[[], None]) -> None:
        """Starts a job that takes `seconds` if it gets all the cores that it needs."""
        heapq.heappush(self._running, (self._virtual + seconds, next(self._numbers), threads, then))
        self._threads += threads
        self.used_seconds += seconds * threads

    def pass_to(self, time: float) -> None:
        """Advances the time, at most to `next_time`."""
        self._virtual += (time - self.now) / self._slowdown
        self.now = time

    def finish_next(self) -> None:
        """Advances the time to `next_time`, and ends that job."""
        self.now = self.next_time
        self._virtual, _, threads, then = heapq.heappop(self._running)
        self._threads = self._threads - threads if self._running else 0.0
        then()

    @property
    def _slowdown(self) -> float:
        return max(1.0, self._threads / self._count)


class _Workers:
    """A pool of threads that run jobs in order; each thread keeps `cores_each` cores busy."""

    def __init__(self, cores: _Cores, count: int, cores_each: float = 1.0) -> None:
        self._cores = cores
        self._idle = count
        self._cores_each = cores_each
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()

    def submit(self, seconds: float, then: Callable[[], None]) -> None:
        self._waiting.append((seconds, then))
        self._start()

    def _start(self) -> None:
        while self._idle and self._waiting:
            self._idle -= 1
            seconds, then = self._waiting.popleft()
            self._cores.run(seconds, self._cores_each, partial(self._end, then))

    def _end(self, then: Callable[[], None]) -> None:
        self._idle += 1
        then()
        self._start()


class _Call(NamedTuple):
    """The call of an entry in the queue."""

    arrival_time: float
    reservation: Reservation


class _Simulation:
    def __init__(self, replica: Replica) -> None:
        curve = replica.curve
        self._curve = curve
        self._cores = cores = _Cores(curve.cores)
        # One line for the loops of all fronts: connections are spread evenly.
        self._event_loops = _Workers(cores, max(1, replica.front_processes))
        self._device_loop = _Workers(cores, 1)
        self._call, self._device_call = _halves(replica)
        self._decoders = _Workers(cores, replica.decode_threads)
        self._concurrent_batches = curve.lanes if curve.has_parallel_lanes else 1
        self._device = _Workers(cores, self._concurrent_batches, curve.forward_cores)
        self._last_end = 0.0  # of a batch
        self._idle_lanes = curve.lanes
        self._scheduler = Scheduler(
            replica.policies, replica.max_queue_delay_seconds, curve.lanes_per_modality
        )
        # Bytes are not simulated: an item has 1 byte, and the limit is that of items.
        limit = replica.max_queue_size
        self._admission = {
            modality: AdmissionController(modality, QueueLimits(limit, limit), clock=lambda: cores.now)
            for modality in replica.policies
        }
        self._latencies: list[float] = []
        self._refused = 0
        self._busy_seconds = 0.0
        self._batch_sizes: dict[str, list[int]] = {modality: [] for modality in replica.policies}

    def run(self, arrivals: Iterable[Arrival]) -> Outcome:
        last = 0.0
        for arrival in arrivals:
            last = arrival.time
            self._pass_to(arrival.time)
            self._receive(arrival)
        self._pass_to(sys.float_info.max)
        seconds = self._cores.now
        return Outcome(
            np.array(self._latencies),
            self._refused,
            self._busy_seconds / (seconds * self._concurrent_batches),
            self._cores.used_seconds / (seconds * self._curve.cores),
            {name: float(np.mean(sizes)) for name, sizes in self._batch_sizes.items() if sizes},
            seconds,
            seconds - last,
        )

    def _pass_to(self, time: float) -> None:
        while True:
            due, end = self._due_time(), self._cores.next_time
            if min(due, end) > time:
                break
            if end <= due:
                self._cores.finish_next()
            else:
                self._cores.pass_to(due)
                self._start_lanes()
        if time < sys.float_info.max:
            self._cores.pass_to(time)

    def _due_time(self) -> float:
        time = self._scheduler.next_due_time() if self._idle_lanes else None
        return math.inf if time is None else time

    def _receive(self, arrival: Arrival) -> None:
        seconds = self._call[arrival.modality]
        if arrival.modality == "text":  # short texts are tokenized on the event loop
            seconds += self._curve.prepare["text"]
        self._event_loops.submit(
            seconds, lambda: self._on_device(arrival.modality, lambda: self._admit(arrival))
        )

    def _on_device(self, modality: str, then: Callable[[], None]) -> None:
        """Does the device process's half of a call, if there is such a process."""
        if seconds := self._device_call[modality]:
            self._device_loop.submit(seconds, then)
        else:
            then()

    def _admit(self, arrival: Arrival) -> None:
        try:
            call = _Call(arrival.time, self._admission[arrival.modality].reserve(1, 1))
        except QueueFull:
            self._refused += 1
            return
        if arrival.modality == "image":
            self._decoders.submit(self._curve.prepare["image"], lambda: self._enqueue(arrival, call))
        else:
            self._enqueue(arrival, call)

    def _enqueue(self, arrival: Arrival, call: _Call) -> None:
        self._scheduler.push(arrival.modality, Entry(call, arrival.length, 1, self._cores.now))
        self._start_lanes()

    def _start_lanes(self) -> None:
        while self._idle_lanes:
            sharing_lanes = self._idle_lanes if self._curve.has_parallel_lanes else 1
            batch = self._scheduler.next_batch(self._cores.now, sharing_lanes)
            if batch is None:
                return
            self._idle_lanes -= 1
            for entry in batch.entries:
                entry.payload.reservation.release(1, 1)
            longest = max(entry.length for entry in batch.entries)
            seconds = self._curve.forward_seconds(batch.modality, len(batch.entries), longest)
            self._device.submit(seconds, partial(self._finish, batch))

    def _finish(self, batch: Batch) -> None:
        start = batch.start_time
        if not self._curve.has_parallel_lanes:
            start = max(start, self._last_end)  # until then the device ran another lane's batch
        self._last_end = self._cores.now
        seconds = self._cores.now - start
        self._scheduler.finish(batch, seconds)
        self._busy_seconds += seconds
        self._batch_sizes[batch.modality].append(len(batch.entries))
        self._idle_lanes += 1
        for entry in batch.entries:
            self._on_device(batch.modality, partial(self._return, batch.modality, entry.payload))
        self._start_lanes()

    def _return(self, modality: str, call: _Call) -> None:
        self._event_loops.submit(self._call[modality], partial(self._answer, call))

    def _answer(self, call: _Call) -> None:
        call.reservation.close()
        self._latencies.append(self._cores.now - call.arrival_time)


def _halves(replica: Replica) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the time of half a call, by modality, on an event loop and in the device process.

    One half is for the request, the other for the answer.
    """
    if not replica.front_processes:
        return _half(replica.curve.call), dict.fromkeys(MODALITIES, 0.0)
    calls = replica.curve.front_calls
    assert calls is not None  # noqa: S101 — see `Replica.front_processes`
    return _half(calls.front), _half(calls.device)


def _half(seconds: Mapping[str, float]) -> dict[str, float]:
    return {modality: each / 2 for modality, each in seconds.items()}
