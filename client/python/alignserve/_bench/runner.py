"""The load generator: sends the calls of a workload under a load, and measures them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from alignserve._bench.load import Load, OpenLoop
from alignserve._bench.recorder import Failure, Measurement, Recorder
from alignserve._bench.routes import Metadata, RequestFailed, Route, opened_routes
from alignserve._bench.workload import UnaryRequest

Watch = Callable[[Recorder, float], None]  # called after each request, with the time

_NEVER_SENT = Failure("DEADLINE_EXCEEDED", "NEVER_SENT", "its deadline passed before it could be sent")


@dataclass(frozen=True, slots=True)
class RunLength:
    """How long to measure.

    Attributes:
        duration_seconds: Time during which requests are counted.
        warmup_seconds: Time before that, during which requests are sent but not counted.
        max_requests: Number of counted requests that ends it earlier, or `None`.
        timeout_seconds: Maximum wait for an answer, from the time at which the request was due.
    """

    duration_seconds: float = 10.0
    warmup_seconds: float = 0.0
    max_requests: int | None = None
    timeout_seconds: float = 30.0


async def measure(
    target: str,
    workload: Iterator[UnaryRequest],
    load: Load,
    run_length: RunLength,
    *,
    connections: int = 1,
    streams: int = 0,
    credentials: grpc.ChannelCredentials | None = None,
    metadata: Metadata = (),
    stop: asyncio.Event | None = None,
    watch: Watch | None = None,
) -> Measurement:
    """Loads any gRPC server and returns the results.

    Args:
        target: Address of the server.
        workload: Calls of any unary methods, finite or not.
        load: How many at once, or how many per second.
        extent: How long.
        connections: TCP connections over which the requests are spread.
        streams: If not 0, calls are sent as items of this many `StreamInfer` streams; alignserve's methods
            only.
        credentials: For TLS.
        metadata: Sent with every call.
        stop: Ends the measurement when it is set; the results so far are returned.
        watch: Called after every request, for a display.

    Raises:
        UnavailableError: The server cannot be reached.
    """
    opened = opened_routes(
        target,
        connections=connections,
        streams=streams,
        timeout_seconds=run_length.timeout_seconds,
        credentials=credentials,
        metadata=metadata,
    )
    async with opened as routes:
        return await drive(routes, workload, load, run_length, stop=stop, watch=watch)


async def drive(
    routes: Sequence[Route],
    workload: Iterator[UnaryRequest],
    load: Load,
    run_length: RunLength,
    *,
    stop: asyncio.Event | None = None,
    watch: Watch | None = None,
) -> Measurement:
    """Loads the routes; see `measure`. Times are those of the event loop."""
    clock = asyncio.get_running_loop().time
    begin, busy = clock(), time.process_time()
    counted_from = begin + run_length.warmup_seconds
    recorder = Recorder(counted_from, counted_from + run_length.duration_seconds)
    turns = _Turns(load, run_length, recorder, workload, clock, begin)
    workers = _Workers(turns, recorder, run_length.timeout_seconds, clock, watch)
    was_interrupted = await _run_until(workers.run(routes, load.in_flight_limit), stop)
    now = clock()
    return recorder.measurement(
        load,
        end=now if was_interrupted or turns.ended_early else math.inf,
        client_cores=(time.process_time() - busy) / max(now - begin, 1e-9),
        was_interrupted=was_interrupted,
    )


@dataclass(slots=True)
class _Turns:
    """Yields the next request and the time when it is due."""

    load: Load
    run_length: RunLength
    recorder: Recorder
    workload: Iterator[UnaryRequest]
    clock: Callable[[], float]
    begin: float
    ended_early: bool = False  # because of the number of requests, not the time
    _given: int = 0
    _due_seconds: Iterator[float] | None = field(init=False)
    _in_line: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self._due_seconds = self.load.due_seconds() if isinstance(self.load, OpenLoop) else None

    async def next(self) -> tuple[float, UnaryRequest] | None:
        """Returns the time at which a call is due, and the call; `None` at the end.

        In an open loop it returns when the call is due; workers wait their turn.
        """
        if self._due_seconds is None:
            return self._given_at(self.clock())
        async with self._in_line:
            due = self.begin + next(self._due_seconds)
            turn = self._given_at(due)
            if turn is not None:
                # Even if it is overdue: sleeping for 0 handles answers before the next request is sent.
                await asyncio.sleep(max(due - self.clock(), 0.0))
            return turn

    def _given_at(self, due: float) -> tuple[float, UnaryRequest] | None:
        if due >= self.recorder.end:
            return None
        call = None if self._given == self.run_length.max_requests else next(self.workload, None)
        if call is None:
            self.ended_early = True
            return None
        self._given += due >= self.recorder.begin
        return due, call


@dataclass(frozen=True, slots=True)
class _Workers:
    """Tasks that each have at most one request in flight."""

    turns: _Turns
    recorder: Recorder
    timeout_seconds: float
    clock: Callable[[], float]
    watch: Watch | None

    async def run(self, routes: Sequence[Route], count: int) -> None:
        """Works until there are no more turns."""
        tasks = [asyncio.create_task(self._work(routes[number % len(routes)])) for number in range(count)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, route: Route) -> None:
        while (turn := await self.turns.next()) is not None:
            due, call = turn
            self.recorder.start(due, self.clock())
            await self._send(route, due, call)
            if self.watch is not None:
                self.watch(self.recorder, self.clock())

    async def _send(self, route: Route, due: float, call: UnaryRequest) -> None:
        remaining = due + self.timeout_seconds - self.clock()
        if remaining <= 0:
            self.recorder.fail(due, _NEVER_SENT)
            return
        try:
            await route.send(call, remaining)
        except RequestFailed as failed:
            self.recorder.fail(due, failed.failure)
        else:
            self.recorder.succeed(due, self.clock(), call.items)


async def _run_until(work: Coroutine[Any, Any, None], stop: asyncio.Event | None) -> bool:
    """Runs the work, and returns whether it was stopped early."""
    task = asyncio.create_task(work)
    stopped = asyncio.create_task(stop.wait() if stop else asyncio.Event().wait())
    try:
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return False
        return True
    finally:
        for one in (task, stopped):
            one.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)
