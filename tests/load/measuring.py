"""Runs the client's load generator against servers, and keeps the medians of rounds."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import psutil
from alignserve._bench.load import ClosedLoop, Load
from alignserve._bench.recorder import Measurement
from alignserve._bench.routes import RequestFailed
from alignserve._bench.runner import Extent, drive, measure
from alignserve._bench.workload import Call

from tests.load.http_route import HttpRoute

_READY_SECONDS = 120.0
_LOOP = asyncio.new_event_loop()  # one for all: grpc.aio keeps to the loop that it has met first


@dataclass(frozen=True)
class Rates:
    """Medians of the rounds at one load."""

    items_per_second: float
    p50_ms: float
    p99_ms: float
    failed: int


def grpc_rates(
    address: str,
    calls: Callable[[], Iterator[Call]],
    load: Load,
    extent: Extent,
    rounds: int,
    streams: int = 0,
) -> Rates:
    """Measures a gRPC server."""

    async def once() -> Measurement:
        connections = 1 if load.most_in_flight == 1 else 4
        return await measure(address, calls(), load, extent, connections=connections, streams=streams)

    return _medians([_LOOP.run_until_complete(once()) for _ in range(rounds)])


def http_rates(
    port: int, calls: Callable[[], Iterator[Call]], concurrency: int, extent: Extent, rounds: int
) -> Rates:
    """Measures an HTTP server."""

    async def once() -> Measurement:
        route = HttpRoute(port)
        try:
            return await drive([route], calls(), ClosedLoop(concurrency), extent)
        finally:
            await route.close()

    return _medians([_LOOP.run_until_complete(once()) for _ in range(rounds)])


def wait_for_http(port: int, calls: Iterator[Call], process: subprocess.Popen[bytes]) -> None:
    """Returns once a server answers a call."""
    end = time.monotonic() + _READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            _LOOP.run_until_complete(HttpRoute(port).send(next(calls), _READY_SECONDS))
        except RequestFailed:
            time.sleep(0.5)
        else:
            return
    raise SystemExit("a peer did not become ready")


def memory_mb(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> float:
    """Returns the memory of a process and its children, pages that they share counted once."""
    parent = psutil.Process(process.pid)
    return sum(each.memory_full_info().pss for each in [parent, *parent.children(recursive=True)]) / 2**20


def is_installed(package: str) -> bool:
    """Says whether a peer can be measured."""
    return find_spec(package) is not None


def _medians(measured: list[Measurement]) -> Rates:
    return Rates(
        items_per_second=statistics.median(one.items_per_second for one in measured),
        p50_ms=1e3 * statistics.median(one.latency.percentile(50) for one in measured),
        p99_ms=1e3 * statistics.median(one.latency.percentile(99) for one in measured),
        failed=sum(one.failed for one in measured),
    )
