"""A real server, and the client's load generator in separate processes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.gpu.check import Check, CheckFailed
from tests.gpu.earlier import IMAGE_RATE, IMAGES, TEXT_RATE, TEXTS, best_rate
from tests.gpu.results import Row
from tests.gpu.steps.decode import PHOTOS
from tests.processes import ServerProcess, family_cpu_seconds, server_process

_EXPLAINING = ("ready", "worker_ready", "cuda_kernels_chosen")  # events of the start
_TEXT_TOKENS = 16  # of the graphs that hold short unique texts
_BUSY = "alignserve_device_busy_seconds_total"
_BATCHED, _BATCHES = "alignserve_batch_size_sum", "alignserve_batch_size_count"


@dataclass(frozen=True)
class Load:
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
    Load("image", 1, 1),
    Load("text", 1, 1),
    Load("image", 4, 64),
    Load("image", 4, 128),
    Load("image", 4, 16, items=16),
    Load("text", 4, 128),
    Load("text", 4, 32, items=64),
    Load("classify", 4, 64),
)
_PRETENDED_LOADS = (Load("image", 2, 4), Load("text", 1, 2, items=2), Load("classify", 1, 1))


def run(check: Check) -> None:
    """Starts a server, loads it in several ways, and stops it."""
    run_with(check, check.sized(_LOADS, _PRETENDED_LOADS), "--device", "cuda")


def run_with(check: Check, loads: Sequence[Load], *more_flags: str) -> None:
    """Does so with more flags of the server.

    Raises:
        CheckFailed: Calls have failed, or the server has ended.
    """
    module = "tests.pretended_cuda.server" if check.is_pretended else "alignserve_server"
    flags = ["--checkpoint", str(check.checkpoint), *more_flags]
    flags += check.sized([], ["--max-batch-size", "2"])
    log = check.output / f"{check.results.step}.log"
    begin = time.perf_counter()
    with server_process(*flags, program=(sys.executable, "-m", module), log=log) as server:
        check.results.measured("Server: startup", {"seconds": time.perf_counter() - begin})
        for line in _noted(log):
            check.results.measured(f"Server: {line['event']}", line)
        check.run_all(*(partial(_check_load, check, server, load) for load in loads))
    if server.process.returncode:
        raise CheckFailed(f"the server ended with {server.process.returncode}")


def _check_load(check: Check, server: ServerProcess, load: Load) -> None:
    row = _measure(check, server, load)
    check.results.measured("Server under load", row)
    if row["failed"]:
        raise CheckFailed(f"{row['failed']} calls failed: {load}")


def _noted(log: Path) -> list[Row]:
    """Returns the events of the start that explain the figures."""
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines() if line.startswith("{")]
    return [
        {
            key: value if isinstance(value, str | int | float) else json.dumps(value)
            for key, value in line.items()
        }
        for line in lines
        if line.get("level") == "warning" or line.get("event") in _EXPLAINING
    ]


def _measure(check: Check, server: ServerProcess, load: Load) -> Row:
    before, cpu, begin = _counters(server), family_cpu_seconds(server.process), time.perf_counter()
    rounds = _generate(check, server, load)
    took, after = time.perf_counter() - begin, _counters(server)
    rate = sum(float(one["items_per_second"]) for one in rounds)
    gained = {name: after[name] - before.get(name, 0.0) for name in after}
    return {
        "callers": load.callers,
        "request": f"{load.work} x {load.items}",
        "items/s": rate,
        "of the graphs' rate": rate / _graph_rate(check, load),
        "p50 ms": statistics.median(float(one["latency_ms"]["p50"]) for one in rounds),
        "p99 ms": max(float(one["latency_ms"]["p99"]) for one in rounds),
        "failed": sum(int(one["failed"]) for one in rounds),
        "entries per batch": gained[_BATCHED] / max(1.0, gained[_BATCHES]),
        "GPU busy": gained[_BUSY] / took,
        "server's cores": (family_cpu_seconds(server.process) - cpu) / took,
    }


def _generate(check: Check, server: ServerProcess, load: Load) -> list[dict[str, Any]]:
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
    command += ["--text-tokens", "short"] if load.work == "text" else []
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


def _graph_rate(check: Check, load: Load) -> float:
    """Returns the highest rate of a graph without a server, for texts of one of the load's length."""
    if load.work == "text":
        return best_rate(check, TEXTS, TEXT_RATE, tokens=_TEXT_TOKENS)
    return best_rate(check, IMAGES, IMAGE_RATE)
