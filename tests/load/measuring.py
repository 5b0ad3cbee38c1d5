"""Runs the client's load generator against servers, round by round, and takes medians."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
from alignserve._bench.load import ClosedLoop, Load
from alignserve._bench.recorder import Measurement
from alignserve._bench.runner import RunLength, drive, measure
from alignserve._bench.workload import UnaryRequest

from tests.load.http_route import HttpRoute
from tests.load.inputs import grpc_calls
from tests.load.report import number, ratio
from tests.processes import ServerProcess

_Name = TypeVar("_Name", bound=Hashable)
_T = TypeVar("_T")

LOOP = asyncio.new_event_loop()  # shared, since grpc.aio stays on the first loop that uses it


@dataclass(frozen=True)
class Plan:
    """The checkpoint to measure, and the number and duration of rounds."""

    checkpoint: str
    rounds: int
    seconds: float  # per round

    @property
    def run_length(self) -> RunLength:
        """The length of one round, with its warm-up."""
        return RunLength(self.seconds, warmup_seconds=1.0)

    @property
    def model(self) -> str:
        """The checkpoint's name, for headings."""
        return Path(self.checkpoint).name


@dataclass(frozen=True)
class Rates:
    """Medians of the rounds at one load."""

    items_per_second: float
    p50_ms: float
    p99_ms: float
    failed: int

    @classmethod
    def of(cls, rounds: Sequence[Measurement]) -> Rates:
        """Takes the medians."""
        return cls(
            items_per_second=statistics.median(one.items_per_second for one in rounds),
            p50_ms=1e3 * statistics.median(one.latency.percentile(50) for one in rounds),
            p99_ms=1e3 * statistics.median(one.latency.percentile(99) for one in rounds),
            failed=sum(one.failed for one in rounds),
        )

    def __str__(self) -> str:
        """Returns the items per second, and the number of failed calls if there are any."""
        return number(self.items_per_second) + (f" ({self.failed} calls failed)" if self.failed else "")


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process and its children."""

    rss_mb: float  # 1e6 bytes; pages that several processes share count for each
    pss_mb: float  # shared pages count once

    @classmethod
    def of(cls, process: subprocess.Popen[Any]) -> Memory:
        """Reads the current memory."""
        parent = psutil.Process(process.pid)
        readings = []
        for member in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):  # a helper that has just ended
                readings.append(member.memory_full_info())
        return cls(sum(one.rss for one in readings) / 1e6, sum(one.pss for one in readings) / 1e6)


def in_turn(measures: Mapping[_Name, Callable[[], _T]], rounds: int) -> dict[_Name, list[_T]]:
    """Takes each measurement once per round, in turn, so that a temporary disturbance affects all of them."""
    results: dict[_Name, list[_T]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, once in measures.items():
            results[name].append(once())
    return results


def grpc_round(
    address: str, calls: Iterator[UnaryRequest], load: Load, run_length: RunLength, streams: int = 0
) -> Measurement:
    """Measures a gRPC server once."""
    connections = 1 if load.in_flight_limit == 1 else 4
    return LOOP.run_until_complete(
        measure(address, calls, load, run_length, connections=connections, streams=streams)
    )


@dataclass(frozen=True)
class TextCost:
    """What text calls cost a server in one round."""

    cpu_us: float  # of the server's process, per call
    measured: Measurement


def text_cost(server: ServerProcess, callers: int, seconds: float) -> TextCost:
    """Measures a server once, with texts, and the CPU time that it takes for them."""
    process = psutil.Process(server.process.pid)
    before = process.cpu_times()
    run_length = RunLength(seconds, warmup_seconds=0.0)  # so that every call is counted
    measured = grpc_round(server.address, grpc_calls("text"), ClosedLoop(callers), run_length)
    after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    return TextCost(1e6 * used / max(1, measured.requests), measured)


def cpu_ratio(without: Sequence[TextCost], with_it: Sequence[TextCost]) -> float:
    """Returns the median of the ratios within a round, whose two costs were measured in succession."""
    return statistics.median(ratio(a.cpu_us, b.cpu_us) for a, b in zip(without, with_it, strict=True))


def http_round(port: int, calls: Iterator[UnaryRequest], load: Load, run_length: RunLength) -> Measurement:
    """Measures an HTTP server once."""

    async def once() -> Measurement:
        route = HttpRoute(port)
        try:
            return await drive([route], calls, load, run_length)
        finally:
            await route.close()

    return LOOP.run_until_complete(once())


def http_answer(port: int, call: UnaryRequest, timeout_seconds: float) -> bytes:
    """Sends one request to an HTTP server and returns the body of its answer."""

    async def once() -> bytes:
        route = HttpRoute(port)
        try:
            return await route.post(call, timeout_seconds)
        finally:
            await route.close()

    return LOOP.run_until_complete(once())


def progress(text: str) -> None:
    """Prints to the terminal what is being measured."""
    print(f"  {text}", file=sys.stderr, flush=True)
