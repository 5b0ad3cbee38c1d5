"""The load generator: sends the calls of a workload under a load, and measures."""

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
from alignserve._bench.workload import Call

Watch = Callable[[Recorder, float], None]  # is told after each request, with the time

_NEVER_SENT = Failure("DEADLINE_EXCEEDED", "NEVER_SENT", "its time was over before it could be sent")


@dataclass(frozen=True, slots=True)
class Extent:
    """How long to measure.

    Attributes:
        duration_seconds: Time in which requests are counted.
        warmup_seconds: Time before it, in which they are sent and not counted.
        max_requests: Counted requests after which it ends earlier, or `None`.
        timeout_seconds: Longest wait for an answer, from the time at which the request was due.
    """

    duration_seconds: float = 10.0
    warmup_seconds: float = 0.0
    max_requests: int | None = None
    timeout_seconds: float = 30.0


async def measure(
    target: str,
    workload: Iterator[Call],
    load: Load,
    extent: Extent,
    *,
    connections: int = 1,
    streams: int = 0,
    credentials: grpc.ChannelCredentials | None = None,
    metadata: Metadata = (),
    stop: asyncio.Event | None = None,
    watch: Watch | None = None,
) -> Measurement:
    """Loads any gRPC server and returns what came out.

    Args:
        target: Address of the server.
        workload: The calls, of any unary methods; it may end.
        load: How many at once, or how many a second.
        extent: How long.
        connections: TCP connections over which the requests are spread.
        streams: If not 0, calls travel as items of so many `StreamInfer`; alignserve's methods only.
        credentials: For TLS.
        metadata: Sent with every call.
        stop: Ends the measurement when it is set; what has been measured is returned.
        watch: Is told of every request, for a display.

    Raises:
        UnavailableError: There is no server.
    """
    opened = opened_routes(
        target,
        connections=connections,
        streams=streams,
        timeout_seconds=extent.timeout_seconds,
        credentials=credentials,
        metadata=metadata,
    )
    async with opened as routes:
        return await drive(routes, workload, load, extent, stop=stop, watch=watch)


async def drive(
    routes: Sequence[Route],
    workload: Iterator[Call],
    load: Load,
    extent: Extent,
    *,
    stop: asyncio.Event | None = None,
    watch: Watch | None = None,
) -> Measurement:
    """Loads the routes; see `measure`. Time is that of the event loop."""
    clock = asyncio.get_running_loop().time
    begin, busy = clock(), time.process_time()
    counted_from = begin + extent.warmup_seconds
    recorder = Recorder(counted_from, counted_from + extent.duration_seconds)
    turns = _Turns(load, extent, recorder, workload, clock, begin)
    workers = _Workers(turns, recorder, extent.timeout_seconds, clock, watch)
    was_interrupted = await _run_until(workers.run(routes, load.most_in_flight), stop)
    now = clock()
    return recorder.measurement(
        load,
        end=now if was_interrupted or turns.ended_early else math.inf,
        client_cores=(time.process_time() - busy) / max(now - begin, 1e-9),
        was_interrupted=was_interrupted,
    )


@dataclass(slots=True)
class _Turns:
    """Says which request is next, and when it is due."""

    load: Load
    extent: Extent
    recorder: Recorder
    workload: Iterator[Call]
    clock: Callable[[], float]
    begin: float
    ended_early: bool = False  # by the number of requests, not by the time
    _given: int = 0
    _due_seconds: Iterator[float] | None = field(init=False)
    _in_line: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self._due_seconds = self.load.due_seconds() if isinstance(self.load, OpenLoop) else None

    async def next(self) -> tuple[float, Call] | None:
        """Returns the time at which a call is due, and the call; `None` at the end.

        In an open loop it returns when the call is due; workers stand in line.
        """
        if self._due_seconds is None:
            return self._given_at(self.clock())
        async with self._in_line:
            due = self.begin + next(self._due_seconds)
            turn = self._given_at(due)
            if turn is not None:
                # Also if it is overdue: 0 lets answers be taken before the next one leaves.
                await asyncio.sleep(max(due - self.clock(), 0.0))
            return turn

    def _given_at(self, due: float) -> tuple[float, Call] | None:
        if due >= self.recorder.end:
            return None
        call = None if self._given == self.extent.max_requests else next(self.workload, None)
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

    async def _send(self, route: Route, due: float, call: Call) -> None:
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
    """Runs the work, and says whether it was stopped before its end."""
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
