"""Measures what the HTTP port costs gRPC callers, idle and busy."""

from __future__ import annotations

import asyncio
import statistics
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count

import httpx
import psutil
from alignserve._bench.load import ClosedLoop
from alignserve._bench.runner import RunLength

from tests.load.inputs import grpc_calls
from tests.load.measuring import Plan, grpc_round, in_turn, progress
from tests.load.report import Bar, Section, number, ratio, table
from tests.processes import ServerProcess, server_process

_CALLERS = 64
_HTTP_CALLERS = 8
_INPUTS = 32  # of each HTTP call, answered as floats in JSON
_WITHOUT, _IDLE, _BUSY = "no HTTP port", "HTTP port, idle", "HTTP port, busy"

_NOTE = f"""\
`--checkpoint fake`, texts, {_CALLERS} gRPC callers, one server at a time. While the port is busy,
{_HTTP_CALLERS} callers post {_INPUTS} texts a call to `/v1/embeddings` and read floats. They use the same two
cores and the same queue, so the gRPC rate falls; the latency shows how long an event loop that writes JSON
keeps others waiting."""


@dataclass(frozen=True)
class _Cost:
    """The cost in one round."""

    cpu_us: float  # per gRPC call
    per_second: float
    p50_ms: float
    p99_ms: float


def run(plan: Plan) -> Section:
    """Measures the three servers in turn."""
    port = ("--http-listen", "127.0.0.1:0")
    with ExitStack() as until_done:
        servers = {
            name: until_done.enter_context(server_process("--checkpoint", "fake", *flags))
            for name, flags in ((_WITHOUT, ()), (_IDLE, port), (_BUSY, port))
        }
        progress(", ".join(servers))
        measures = {
            name: lambda name=name, of=server: _cost(name, of, plan) for name, server in servers.items()
        }
        costs = in_turn(measures, plan.rounds)
    shares = {name: _share(costs[_WITHOUT], of) for name, of in costs.items()}
    head = ("server", "CPU µs per gRPC call", "without ÷ this", "gRPC calls/s", "p50 ms", "p99 ms")
    rows = [
        (
            name,
            # The busy server's CPU time includes that of HTTP calls.
            "" if name == _BUSY else number(statistics.median(cost.cpu_us for cost in of)),
            "" if name == _BUSY else f"{shares[name]:.3f}",
            number(statistics.median(cost.per_second for cost in of)),
            number(statistics.median(cost.p50_ms for cost in of)),
            number(statistics.median(cost.p99_ms for cost in of)),
        )
        for name, of in costs.items()
    ]
    bar = Bar("CPU time per gRPC call without an HTTP port ÷ with an idle one", shares[_IDLE], 0.98)
    return Section("HTTP port", [_NOTE, table(head, rows)], [bar])


def _share(without: Sequence[_Cost], with_port: Sequence[_Cost]) -> float:
    """Returns the median of the ratios within a round, whose two costs were measured in succession."""
    return statistics.median(ratio(a.cpu_us, b.cpu_us) for a, b in zip(without, with_port, strict=True))


def _cost(name: str, server: ServerProcess, plan: Plan) -> _Cost:
    with _busy(server.http_port) if name == _BUSY else ExitStack():
        process = psutil.Process(server.process.pid)
        before = process.cpu_times()
        run_length = RunLength(plan.seconds, warmup_seconds=0.0)  # so that every call is counted
        measured = grpc_round(server.address, grpc_calls("text"), ClosedLoop(_CALLERS), run_length)
        after = process.cpu_times()
    seconds = after.user + after.system - before.user - before.system
    p50, p99 = (1000 * measured.latency.percentile(percent) for percent in (50, 99))
    return _Cost(1e6 * seconds / max(1, measured.requests), measured.items_per_second, p50, p99)


@contextmanager
def _busy(port: int) -> Iterator[None]:
    """Keeps HTTP callers busy meanwhile, on a thread with an event loop of its own."""
    done = threading.Event()
    numbers = count()

    async def caller(client: httpx.AsyncClient) -> None:
        while not done.is_set():
            texts = [f"text {next(numbers)}" for _ in range(_INPUTS)]
            answer = await client.post("/v1/embeddings", json={"input": texts, "encoding_format": "float"})
            answer.raise_for_status()

    async def all_callers() -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60.0) as client:
            await asyncio.gather(*(caller(client) for _ in range(_HTTP_CALLERS)))

    calling = threading.Thread(target=lambda: asyncio.run(all_callers()))
    calling.start()
    try:
        yield
    finally:
        done.set()
        calling.join()
