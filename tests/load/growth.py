"""CPU time of an item in the whole server, and how it grows with callers, connections and request sizes.

python -m tests.load.growth [--before FOLDER] [--fronts] [--rows NAME;…] [--rounds N]

With `--fronts`, a device process with one front takes turns too; each process has a column. `engine_cost`
leaves out gRPC, `device_cost` decoding too.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from alignserve import Client
from alignserve._bench.load import ClosedLoop
from alignserve._bench.recorder import Measurement
from alignserve._bench.routes import Route, opened_routes
from alignserve._bench.runner import RunLength, drive
from alignserve_server.host.processes import cpu_seconds

from tests.load.contenders import python_server
from tests.load.inputs import grpc_calls
from tests.load.measuring import LOOP, Plan, progress
from tests.load.report import Bar, Section, number, ratio, table
from tests.processes import ROOT, free_port, server_of, server_process

_DIMENSION = 640  # of the echo server's embeddings
_TIMEOUT_SECONDS = 120.0
_FLAGS = ("--checkpoint", "fake", "--max-queue-size", "8192")  # room for the most callers at once
_MAX_RATIO, _MAX_GROWTH = 1.7, 1.1
_ECHO, OURS, FRONT, DEVICE = "echo", "alignserve", "a front", "its device"

_Costs: TypeAlias = dict[str, float]  # by process


@dataclass(frozen=True)
class _Calls:
    """The calls of one row."""

    requests: int  # in a turn
    callers: int
    modality: str = "text"
    items: int = 1  # in a request
    connections: int = 1
    streams: int = 0


_REFERENCE, _MOST_CALLERS, _MOST_CONNECTIONS = "64 callers", "2,048 callers", "512 callers, 512 connections"
_ROWS = {
    "1 caller": _Calls(400, 1),
    _REFERENCE: _Calls(1600, 64),
    "512 callers": _Calls(2048, 512),
    _MOST_CALLERS: _Calls(4096, 2048),
    _MOST_CONNECTIONS: _Calls(2048, 512, connections=512),
    "4 streams, 64 in flight": _Calls(1600, 64, streams=4),
    "4 streams, 1,024 in flight": _Calls(4096, 1024, streams=4),
    "64 callers, 8 texts a request": _Calls(800, 64, items=8),
    "64 callers, 64 texts a request": _Calls(192, 64, items=64),
    "64 callers, images": _Calls(400, 64, "image"),
    "4 streams, images": _Calls(400, 64, "image", streams=4),
}

_NOTE = f"""\
CPU time of the server's process per item, in microseconds: an echo server on bare grpc.aio, and
alignserve with `--checkpoint fake`. They take turns of some hundred calls, and the clients' process does
not count, so the figures hold on a busy machine too. Connections and streams are opened beforehand.
Bounds: {_MAX_RATIO} times the echo with 64 callers, and {_MAX_GROWTH} times that cost with the most
callers and connections."""


@dataclass(frozen=True)
class MeasuredServer:
    """A running server."""

    address: str
    processes: Mapping[str, int]  # ids of those that are measured, by name

    def cpu_seconds(self) -> dict[str, float]:
        """Returns the CPU time of each process so far."""
        return {name: cpu_seconds(process) for name, process in self.processes.items()}


def run(plan: Plan) -> Section:
    """Measures both servers."""
    with _echo() as echo, ours(ROOT) as server:
        costs = costs_of([echo, server], list(_ROWS), 3 * plan.rounds)
    reference = costs[_REFERENCE][OURS]
    growth = {name: ratio(costs[name][OURS], reference) for name in (_MOST_CALLERS, _MOST_CONNECTIONS)}
    return Section(
        "Growth of the server's cost",
        [_NOTE, _table(costs)],
        [
            Bar(f"CPU µs ÷ echo, {_REFERENCE}", ratio(reference, costs[_REFERENCE][_ECHO]), _MAX_RATIO, True),
            *(Bar(f"CPU µs, {name} ÷ {_REFERENCE}", of, _MAX_GROWTH, True) for name, of in growth.items()),
        ],
    )


def main() -> None:
    """Prints the table, compared with the server of another checkout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--fronts", action="store_true", help="compare with front processes")
    parser.add_argument("--rows", default=";".join(_ROWS), help="names of rows, separated by ;")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each server in each row")
    given = parser.parse_args()
    with ExitStack() as until_done:
        servers = [until_done.enter_context(_echo())]
        if given.before is not None:
            servers.append(until_done.enter_context(ours(given.before.resolve(), "before")))
        servers.append(until_done.enter_context(ours(ROOT)))
        if given.fronts:
            servers.append(until_done.enter_context(with_front()))
        print(_table(costs_of(servers, given.rows.split(";"), given.rounds)))


@contextmanager
def _echo() -> Iterator[MeasuredServer]:
    port = free_port()
    address = f"127.0.0.1:{port}"
    with (
        python_server("echo_server", str(_DIMENSION), str(port)) as process,
        Client(address, wait_for_ready=True) as client,
    ):
        client.embed_text("ready?")
        yield MeasuredServer(address, {_ECHO: process.pid})


@contextmanager
def ours(folder: Path, name: str = OURS) -> Iterator[MeasuredServer]:
    """Runs the server of a checkout in one process."""
    with server_process(*_FLAGS, program=server_of(folder)) as server:
        yield MeasuredServer(server.address, {name: server.process.pid})


@contextmanager
def with_front() -> Iterator[MeasuredServer]:
    """Runs a device process with one front."""
    with server_process(*_FLAGS, "--front-processes", "1", program=server_of(ROOT)) as server:
        yield MeasuredServer(
            server.address, {FRONT: server.workers["front-0"], DEVICE: server.workers["device"]}
        )


def costs_of(servers: Sequence[MeasuredServer], rows: Sequence[str], turns: int) -> dict[str, _Costs]:
    """Returns the CPU microseconds of an item in each process, by row."""
    return {name: LOOP.run_until_complete(_cost(name, servers, turns)) for name in rows}


async def _cost(name: str, servers: Sequence[MeasuredServer], turns: int) -> _Costs:
    """Returns the CPU microseconds of an item in each process: medians of the turns after the first."""
    progress(name)
    calls = _ROWS[name]
    async with AsyncExitStack() as until_done:
        routes = [await until_done.enter_async_context(_opened(server.address, calls)) for server in servers]
        costs: dict[str, list[float]] = {process: [] for server in servers for process in server.processes}
        for turn in range(turns + 1):
            for server, to_server in zip(servers, routes, strict=True):
                start = server.cpu_seconds()
                measured = await _turn(to_server, calls)
                if measured.failed:
                    raise SystemExit(f"{[*server.processes]}, {name}: {measured.failures}")
                if turn:
                    for process, seconds in server.cpu_seconds().items():
                        used = seconds - start[process]
                        costs[process].append(used / (calls.requests * calls.items) * 1e6)
    return {process: statistics.median(of) for process, of in costs.items()}


def _opened(address: str, calls: _Calls) -> AbstractAsyncContextManager[list[Route]]:
    return opened_routes(
        address,
        connections=calls.connections,
        streams=calls.streams,
        timeout_seconds=_TIMEOUT_SECONDS,
        credentials=None,
        metadata=(),
    )


async def _turn(routes: Sequence[Route], calls: _Calls) -> Measurement:
    length = RunLength(_TIMEOUT_SECONDS, max_requests=calls.requests, timeout_seconds=_TIMEOUT_SECONDS)
    return await drive(routes, grpc_calls(calls.modality, calls.items), ClosedLoop(calls.callers), length)


def _table(costs: Mapping[str, _Costs]) -> str:
    servers = list(next(iter(costs.values())))
    head = ("calls", *servers, *(f"{server} ÷ {_ECHO}" for server in servers[1:]))
    return table(
        head,
        [
            (
                name,
                *map(number, of.values()),
                *(f"{ratio(of[server], of[_ECHO]):.2f}" for server in servers[1:]),
            )
            for name, of in costs.items()
        ],
    )


if __name__ == "__main__":
    main()
