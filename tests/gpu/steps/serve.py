"""A real server, and the client's load generator in separate processes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from typing import Any

import psutil
from alignserve import Client
from prometheus_client.parser import text_string_to_metric_families

from tests.gpu.check import Check, CheckFailed
from tests.gpu.results import Row
from tests.gpu.steps.decode import PHOTOS
from tests.processes import ServerProcess, server_process

_BUSY = "alignserve_device_busy_seconds_total"
_BATCHED, _BATCHES = "alignserve_batch_size_sum", "alignserve_batch_size_count"


@dataclass(frozen=True)
class _Load:
    """Callers that keep one request each in flight.

    Attributes:
        work: The load generator's name of the workload.
        generators: The number of processes; one core does not saturate a GPU.
        callers: The number of callers, over all generators.
        items: The number of items per request.
    """

    work: str
    generators: int
    callers: int
    items: int = 1


_LOADS = (
    _Load("image", 1, 1),
    _Load("text", 1, 1),
    _Load("image", 4, 64),
    _Load("image", 4, 128),
    _Load("image", 4, 16, items=16),
    _Load("text", 4, 128),
    _Load("text", 4, 32, items=32),
    _Load("classify", 4, 64),
)
_PRETENDED_LOADS = (_Load("image", 2, 4), _Load("text", 1, 2, items=2), _Load("classify", 1, 1))


def run(check: Check) -> None:
    """Starts a server, loads it in several ways, and stops it."""
    module = "tests.pretended_cuda.server" if check.is_pretended else "alignserve_server"
    flags = ["--checkpoint", str(check.checkpoint), "--device", "cuda"]
    flags += check.sized([], ["--max-batch-size", "2"])
    begin = time.perf_counter()
    with server_process(*flags, program=(sys.executable, "-m", module)) as server:
        check.results.measured("Server: startup", {"seconds": time.perf_counter() - begin})
        check.results.proved("Server", _served(server))
        rows = [_measure(check, server, load) for load in check.sized(_LOADS, _PRETENDED_LOADS)]
    check.results.measured("Server under load", *rows)
    code = server.process.returncode
    if code or any(row["failed"] for row in rows):
        raise CheckFailed(f"calls failed, or the server ended with {code}")


def _served(server: ServerProcess) -> Row:
    with Client(server.address) as client:
        info = client.model_info()
    return {"runtime": info.runtime, "dtype": info.dtype, "device": info.device}


def _measure(check: Check, server: ServerProcess, load: _Load) -> Row:
    process = psutil.Process(server.process.pid)
    before, cpu, begin = _counters(server), _cpu_seconds(process), time.perf_counter()
    rounds = _generate(check, server, load)
    took, after = time.perf_counter() - begin, _counters(server)
    gained = {name: after[name] - before.get(name, 0.0) for name in after}
    return {
        "callers": load.callers,
        "request": f"{load.work} x {load.items}",
        "items/s": sum(float(one["items_per_second"]) for one in rounds),
        "p50 ms": statistics.median(float(one["latency_ms"]["p50"]) for one in rounds),
        "p99 ms": max(float(one["latency_ms"]["p99"]) for one in rounds),
        "failed": sum(int(one["failed"]) for one in rounds),
        "entries per batch": gained[_BATCHED] / max(1.0, gained[_BATCHES]),
        "GPU busy": gained[_BUSY] / took,
        "server's cores": (_cpu_seconds(process) - cpu) / took,
    }


def _generate(check: Check, server: ServerProcess, load: _Load) -> list[dict[str, Any]]:
    """Runs the load generators to their end; returns the measurement of each."""
    callers = load.callers // load.generators
    command = [
        sys.executable,
        "-m",
        "alignserve.cli",
        "bench",
        "--server",
        server.address,
        "--unique",
        "--json",
    ]
    command += ["--work", load.work, "--images", str(PHOTOS), "--items-per-request", str(load.items)]
    command += ["--concurrency", str(callers), "--connections", str(min(4, callers))]
    command += ["--duration-seconds", check.sized("4", "0.3"), "--warmup-seconds", check.sized("1.5", "0.1")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(load.generators)]
    answers = [one.communicate()[0] for one in running]
    if codes := [one.returncode for one in running if one.returncode]:
        raise CheckFailed(f"a load generator ended with {codes[0]}: {load}")
    return [json.loads(answer)["measurements"][0] for answer in answers]


def _counters(server: ServerProcess) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    totals = dict.fromkeys((_BUSY, _BATCHED, _BATCHES), 0.0)
    for sample in (sample for family in families for sample in family.samples):
        if sample.name in totals:
            totals[sample.name] += sample.value
    return totals


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
