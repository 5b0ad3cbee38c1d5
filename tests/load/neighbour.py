"""Measures how much throughput each server keeps while another process keeps one core busy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial

from alignserve._bench.load import ClosedLoop
from alignserve._bench.recorder import Measurement
from alignserve._bench.runner import RunLength

from tests.load.contenders import (
    ALIGNSERVE,
    ALIGNSERVE_TORCH,
    MOSEC,
    PLAIN,
    Contender,
    Running,
    contenders,
    peers,
)
from tests.load.inputs import MODALITIES
from tests.load.measuring import Plan, Rates, progress
from tests.load.report import Section, number, ratio, table

_NOTE = """\
The neighbour is a process that only keeps one core busy. One round, twice as long as elsewhere, since some
servers give few answers next to it."""
_NAMES = (ALIGNSERVE, ALIGNSERVE_TORCH, MOSEC, PLAIN)


def run(plan: Plan) -> Section:
    """Measures each server with and without a neighbour, in turn."""
    everyone = [*contenders(plan.checkpoint), *peers(plan.checkpoint)]
    chosen = [each for each in everyone if each.name in _NAMES and each.absence is None]
    rows = [row for contender in chosen for row in _rows(contender, plan)]
    head = (
        *("server", "items", "items/s at 64", "with neighbour", "ratio"),
        *("p50 ms at 1", "with neighbour", "ratio"),
    )
    return Section(f"With a busy neighbour: {plan.model}", [_NOTE, table(head, rows)])


def _rows(contender: Contender, plan: Plan) -> list[tuple[object, ...]]:
    progress(contender.name)
    with contender.start() as server:
        return [_row(contender.name, server, modality, plan) for modality in MODALITIES]


def _row(name: str, server: Running, modality: str, plan: Plan) -> tuple[object, ...]:
    run_length = RunLength(2 * plan.seconds, warmup_seconds=1.0)
    one, many = (partial(server.measure, modality, ClosedLoop(callers), run_length) for callers in (1, 64))
    busiest, busiest_shared = Rates.of([many()]), Rates.of([_with_neighbour(many)])
    throughput = ratio(busiest_shared.items_per_second, busiest.items_per_second)
    p50, p50_shared = Rates.of([one()]).p50_ms, Rates.of([_with_neighbour(one)]).p50_ms
    return (
        *(name, modality, busiest, busiest_shared, f"{throughput:.2f}"),
        *(number(p50), number(p50_shared), f"{ratio(p50_shared, p50):.2f}"),
    )


def _with_neighbour(measure: Callable[[], Measurement]) -> Measurement:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
        try:
            return measure()
        finally:
            neighbour.kill()
