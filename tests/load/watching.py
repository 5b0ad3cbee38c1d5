"""Measures what metrics, the access log and traces cost the server."""

from __future__ import annotations

import os
import statistics
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

from tests.collector import Collector, collecting
from tests.load.measuring import Plan, cpu_ratio, in_turn, progress, text_cost
from tests.load.report import Bar, Section, number, table
from tests.processes import ServerProcess, server_process

_CALLERS = 64
_SCRAPE_SECONDS = 5.0
_UNWATCHED = (sys.executable, "-m", "tests.load.peers.unwatched_server")
_NOTHING, _METRICS = "nothing", "metrics"

_NOTE = f"""\
`--checkpoint fake`, texts, {_CALLERS} callers, one server at a time: CPU time of the server's process per
call, and calls per second. The first server is patched to count nothing; the others count as usual and are
scraped every {_SCRAPE_SECONDS:.0f} s. Spans go to a collector that uses the same two cores, so for tracing
only the CPU time is meaningful."""


@dataclass(frozen=True)
class _Way:
    """A way to observe the server."""

    flags: tuple[str, ...] = ()
    sampled: str = "0"  # share of traced calls


_WAYS = {
    _METRICS: _Way(),
    "and a log line per 100 calls": _Way(("--access-log-sample-ratio", "0.01")),
    "and a log line per call": _Way(("--access-log-sample-ratio", "1")),
    "and a trace per 100 calls": _Way(("--tracing",), "0.01"),
    "and a trace per call": _Way(("--tracing",), "1"),
}


def run(plan: Plan) -> Section:
    """Measures all ways in turn."""
    with collecting() as collector, ExitStack() as until_done:
        servers = {
            _NOTHING: until_done.enter_context(server_process("--checkpoint", "fake", program=_UNWATCHED))
        }
        for name, way in _WAYS.items():
            servers[name] = until_done.enter_context(_watched(way, collector))
        progress(", ".join(servers))
        measures = {
            name: lambda of=server: text_cost(of, _CALLERS, plan.seconds) for name, server in servers.items()
        }
        costs = in_turn(measures, plan.rounds)
    shares = {name: cpu_ratio(costs[_NOTHING], of) for name, of in costs.items()}
    head = ("observed by", "CPU µs per call", "nothing ÷ this", "calls/s")
    rows = [
        (
            name,
            number(statistics.median(cost.cpu_us for cost in of)),
            f"{shares[name]:.3f}",
            number(statistics.median(cost.measured.items_per_second for cost in of)),
        )
        for name, of in costs.items()
    ]
    bar = Bar("CPU time per call without metrics ÷ with", shares[_METRICS], 0.98)
    return Section("Observability", [_NOTE, table(head, rows)], [bar])


@contextmanager
def _watched(way: _Way, collector: Collector) -> Iterator[ServerProcess]:
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": way.sampled,
    }
    done = threading.Event()
    with (
        mock.patch.dict(os.environ, variables),
        server_process("--checkpoint", "fake", *way.flags) as running,
    ):
        scraping = threading.Thread(target=_scrape, args=(running.metrics_port, done))
        scraping.start()
        try:
            yield running
        finally:
            done.set()
            scraping.join()


def _scrape(port: int, done: threading.Event) -> None:
    while not done.wait(_SCRAPE_SECONDS):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30.0) as page:
            page.read()
