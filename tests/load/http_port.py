"""Measures what the HTTP port costs gRPC callers, idle and busy."""

from __future__ import annotations

import asyncio
import statistics
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

import httpx

from tests.load.measuring import Plan, TextCost, cpu_ratio, in_turn, progress, text_cost
from tests.load.report import Bar, Section, number, table
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
    shares = {name: cpu_ratio(costs[_WITHOUT], of) for name, of in costs.items()}
    head = ("server", "CPU µs per gRPC call", "without ÷ this", "gRPC calls/s", "p50 ms", "p99 ms")
    rows = [
        (
            name,
            # The busy server's CPU time includes that of HTTP calls.
            "" if name == _BUSY else number(statistics.median(cost.cpu_us for cost in of)),
            "" if name == _BUSY else f"{shares[name]:.3f}",
            number(statistics.median(cost.measured.items_per_second for cost in of)),
            number(statistics.median(1e3 * cost.measured.latency.percentile(50) for cost in of)),
            number(statistics.median(1e3 * cost.measured.latency.percentile(99) for cost in of)),
        )
        for name, of in costs.items()
    ]
    bar = Bar("CPU time per gRPC call without an HTTP port ÷ with an idle one", shares[_IDLE], 0.98)
    return Section("HTTP port", [_NOTE, table(head, rows)], [bar])


def _cost(name: str, server: ServerProcess, plan: Plan) -> TextCost:
    with _busy(server.http_port) if name == _BUSY else ExitStack():
        return text_cost(server, _CALLERS, plan.seconds)


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
