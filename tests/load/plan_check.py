"""Compares the predictions of `alignserve-server plan` with measurements of a real server."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from alignserve._bench.images import varied_image
from alignserve._bench.inputs import Inputs
from alignserve._bench.load import OpenLoop
from alignserve._bench.runner import RunLength
from alignserve._bench.workload import calls
from prometheus_client.parser import text_string_to_metric_families

from tests.load.inputs import MODALITIES, PHOTOS, TEXTS
from tests.load.measuring import Plan, Rates, grpc_round, progress
from tests.load.report import Bar, Section, number, table
from tests.processes import BIN, ROOT, ServerProcess, server_process

_LOADS = (0.5, 0.7, 0.9)  # of the highest planned rate
_SECONDS_PER_ROUND_SECOND = 4
_MAX_FACTOR = 1.5  # maximum error of p99, in either direction
_TRAFFIC = ("--image-size", "512x443")  # the average number of pixels of the photos

_NOTE = """\
`plan` measures how much load one replica sustains; a real server gets a share of that load, as calls of one
item at random times (Poisson). In the first case the model sleeps, 20 ms per batch and 2 ms per entry, so
that it takes no core. In the others it runs on OpenVINO, and server and client have a core each. While
`plan` measures, a process keeps the client's core busy, since the cores may share caches and execution units.
Mean batch sizes of images, then of texts. Medians of the rounds; milliseconds."""


@dataclass(frozen=True)
class _Case:
    """A server, its traffic, and the p99 that it is planned for."""

    name: str
    program: Sequence[str]
    p99_seconds: float
    image_share: float
    text_tokens: str  # of the captions, by the model's tokenizer
    flags: Sequence[str] = ()
    has_own_core: bool = True


@dataclass(frozen=True)
class _Batches:
    """Counts of batches and their entries, by modality."""

    batches: Mapping[str, float]
    entries: Mapping[str, float]

    @classmethod
    def of(cls, server: ServerProcess) -> _Batches:
        """Reads the counts from the server's metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as page:
            families = text_string_to_metric_families(page.read().decode())
        samples = [
            sample
            for family in families
            if family.name == "alignserve_batch_size"
            for sample in family.samples
        ]

        def by_modality(suffix: str) -> dict[str, float]:
            return {one.labels["modality"]: one.value for one in samples if one.name.endswith(suffix)}

        return cls(by_modality("_count"), by_modality("_sum"))

    def mean_since(self, before: _Batches) -> dict[str, float]:
        """Returns the mean batch size of each modality with new batches."""
        return {
            name: (self.entries[name] - before.entries[name]) / (count - before.batches.get(name, 0.0))
            for name, count in self.batches.items()
            if count > before.batches.get(name, 0.0)
        }


_SLEEPING = (sys.executable, "-m", "tests.load.peers.sleeping_server")
_SERVER = (str(BIN / "alignserve-server"),)


def run(plan: Plan) -> Section:
    """Plans each case and measures it at each load."""
    sleeping = ("--max-batch-size", "16")
    cases = [
        _Case("sleeping, texts", _SLEEPING, 0.25, 0.0, "6-49", sleeping, has_own_core=False),
        _Case("texts", _SERVER, 0.1, 0.0, "12-55", ("--checkpoint", plan.checkpoint)),
        _Case("images", _SERVER, 0.25, 1.0, "12-55", ("--checkpoint", plan.checkpoint)),
        _Case("half and half", _SERVER, 0.25, 0.5, "12-55", ("--checkpoint", plan.checkpoint)),
    ]
    rows: list[tuple[object, ...]] = []
    bars: list[Bar] = []
    for case in cases:
        progress(case.name)
        for load, planned, measured, mean_batch in _compared(case, plan):
            factor = measured.p99_ms / (1e3 * planned["p99_seconds"])
            rows.append(_row(case, load, planned, measured, mean_batch))
            name = f"{case.name} at {load:.0%}: error factor of the planned p99"
            bars.append(Bar(name, max(factor, 1 / factor), _MAX_FACTOR, is_ceiling=True))
    head = ("traffic", "load", "calls/s", "p50 planned", "measured", "p99 planned", "measured")
    return Section(f"Planned: {plan.model}", [_NOTE, table((*head, "batch planned", "measured"), rows)], bars)


def _compared(case: _Case, plan: Plan) -> Iterator[tuple[float, dict[str, Any], Rates, dict[str, float]]]:
    with tempfile.TemporaryDirectory() as folder, _client_core(case) as prefix:
        curve = str(Path(folder, "curve.json"))
        with _busy_core() if case.has_own_core else nullcontext():
            peak = _plan(case, prefix, "--save", curve)["calls_per_second_of_one"]
        for load in _LOADS:
            rate = load * peak
            (planned,) = _plan(case, prefix, "--curve", curve, "--rps", str(rate), "--replicas", "1")["plans"]
            with server_process(
                *case.flags, "--text-cache-bytes", "0", program=(*prefix, *case.program)
            ) as server:
                yield load, planned, *_measured(server, case, rate, plan)


def _plan(case: _Case, prefix: Sequence[str], *flags: str) -> dict[str, Any]:
    command = [
        *(*prefix, *case.program, "plan", "--json", "--p99", str(case.p99_seconds), *_TRAFFIC),
        *("--share-of-images", str(case.image_share), "--text-tokens", case.text_tokens),
        *(*case.flags, *flags),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _measured(server: ServerProcess, case: _Case, rate: float, plan: Plan) -> tuple[Rates, dict[str, float]]:
    weights = dict(zip(MODALITIES, (case.image_share, 1 - case.image_share), strict=True))
    inputs = Inputs(images=[varied_image(photo) for photo in PHOTOS], texts=TEXTS)
    run_length = RunLength(plan.seconds * _SECONDS_PER_ROUND_SECOND, warmup_seconds=1.0)
    before = _Batches.of(server)
    rounds = [
        grpc_round(server.address, calls(weights, inputs, seed), OpenLoop(rate, seed=seed), run_length)
        for seed in range(plan.rounds)
    ]
    return Rates.of(rounds), _Batches.of(server).mean_since(before)


@contextmanager
def _client_core(case: _Case) -> Iterator[Sequence[str]]:
    """Reserves a core for the server if it needs its own; yields the prefix of the server's command."""
    process = psutil.Process()
    cores = process.cpu_affinity()
    if not case.has_own_core or len(cores) < 2:
        yield ()
        return
    process.cpu_affinity(cores[1:])
    try:
        yield ("taskset", "--cpu-list", str(cores[0]))
    finally:
        process.cpu_affinity(cores)


@contextmanager
def _busy_core() -> Iterator[None]:
    """Keeps a core of this process busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            yield
        finally:
            busy.kill()


def _row(
    case: _Case, load: float, planned: Mapping[str, Any], measured: Rates, mean_batch: Mapping[str, float]
) -> tuple[object, ...]:
    return (
        *(case.name, f"{load:.0%}", measured),
        *(number(1e3 * planned["p50_seconds"]), number(measured.p50_ms)),
        *(number(1e3 * planned["p99_seconds"]), number(measured.p99_ms)),
        *(_batches(planned["mean_batch"]), _batches(mean_batch)),
    )


def _batches(means: Mapping[str, float]) -> str:
    return ", ".join(f"{means[name]:.2f}" for name in MODALITIES if name in means)
