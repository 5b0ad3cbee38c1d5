"""Measures a server's startup time and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from alignserve._bench.load import ClosedLoop
from alignserve_server.model.checkpoint import EMBEDDED, resolve_checkpoint

from tests.load.contenders import BFLOAT16, has_bfloat16
from tests.load.inputs import MODALITIES, grpc_calls
from tests.load.measuring import Memory, Plan, grpc_round, progress
from tests.load.report import Bar, Section, table
from tests.processes import server_process

_DEFAULT = "no flag"
_STARTS = 5
_CALLERS = 64
_MAX_START_SECONDS = 3.0  # for the embedded checkpoint
_MAX_WEIGHTS, _MAX_FIXED_MB = 1.6, 300.0  # for larger checkpoints

_NOTE = f"""\
Seconds from the command to the log line `ready`, after a first start that fills the caches: median and
maximum of {_STARTS} starts with the embedded checkpoint, or one start with another. Memory in MB (10⁶ bytes)
when ready, and after images and then texts from {_CALLERS} callers: RSS, with PSS in brackets. The bound,
meant for full size, is {_MAX_WEIGHTS} times the weights in the data type plus {_MAX_FIXED_MB:.0f} MB."""


@dataclass(frozen=True)
class _Usage:
    """The startup time and memory of one configuration."""

    start_seconds: Sequence[float]
    ready: Memory
    loaded: Memory
    bound_mb: float


def run(plan: Plan) -> Section:
    """Measures the runtimes and data types that this machine supports."""
    flags: dict[str, tuple[str, ...]] = {_DEFAULT: (), "`--runtime torch`": ("--runtime", "torch")}
    if has_bfloat16():
        flags |= {f"`{' '.join(BFLOAT16)}`": BFLOAT16}
    usages = {name: _usage(name, chosen, plan) for name, chosen in flags.items()}
    head = ("alignserve-server", "startup s", "memory, ready", "memory, loaded", "bound")
    bars = [bar for name, usage in usages.items() for bar in _bars(name, usage, plan)]
    rows = [_row(name, usage) for name, usage in usages.items()]
    return Section(f"Startup and memory: {plan.model}", [_NOTE, table(head, rows)], bars)


def _usage(name: str, flags: Sequence[str], plan: Plan) -> _Usage:
    progress(name)
    command = ("--checkpoint", plan.checkpoint, *flags)
    starts = _STARTS if plan.checkpoint == EMBEDDED else 1
    start_seconds = [_start_seconds(command) for _ in range(1 + starts)][1:]
    with server_process(*command) as server:
        ready = Memory.of(server.process)
        for modality in MODALITIES:
            grpc_round(server.address, grpc_calls(modality), ClosedLoop(_CALLERS), plan.run_length)
        loaded = Memory.of(server.process)
    weights = (resolve_checkpoint(plan.checkpoint).folder / "model.safetensors").stat().st_size
    share = 0.5 if "bfloat16" in flags else 1.0
    return _Usage(start_seconds, ready, loaded, _MAX_WEIGHTS * share * weights / 1e6 + _MAX_FIXED_MB)


def _start_seconds(command: Sequence[str]) -> float:
    start = time.perf_counter()
    with server_process(*command):
        return time.perf_counter() - start


def _row(name: str, usage: _Usage) -> tuple[object, ...]:
    start = f"{statistics.median(usage.start_seconds):.2f}, {max(usage.start_seconds):.2f}"
    memory = (f"{of.rss_mb:.0f} ({of.pss_mb:.0f})" for of in (usage.ready, usage.loaded))
    return name, start, *memory, f"{usage.bound_mb:.0f}"


def _bars(name: str, usage: _Usage, plan: Plan) -> list[Bar]:
    if plan.checkpoint != EMBEDDED:
        return [Bar(f"memory, {name}, MB", usage.loaded.rss_mb, usage.bound_mb, is_ceiling=True)]
    seconds = statistics.median(usage.start_seconds)
    return [Bar("startup, s", seconds, _MAX_START_SECONDS, is_ceiling=True)] if name == _DEFAULT else []
