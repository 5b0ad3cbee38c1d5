"""Measures how close the server gets to its ceiling, and its latency under load."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from alignserve._bench.load import ClosedLoop, OpenLoop
from alignserve._bench.recorder import Measurement
from alignserve._bench.runner import RunLength
from alignserve_server.model.encoder import Encoder

from tests.load.inputs import MODALITIES, grpc_calls
from tests.load.measuring import Plan, Rates, grpc_round, in_turn, progress
from tests.load.offline import bare_encoder, best_offline_batch, offline_rate
from tests.load.report import Bar, Section, number, ratio, table
from tests.processes import server_process

_CONCURRENCY = {"image": 32, "text": 128}
_MIN_SHARE = {"image": 0.95, "text": 0.85}  # of the ceiling
_LOADS = (0.5, 0.7, 0.9)
_MIN_CALLS = 100  # of an open loop, so that its p99 means something
_MAX_LATENCIES = 4.0  # maximum p99 at 70 % load, in latencies of one caller

_NOTE = """\
Items per second, and the share of the ceiling: the same encoder in a loop at its best batch size, with
overlapped decoding and no server. Ceiling and server take turns. The client shares the server's cores."""
_OPEN_NOTE = """\
Open loop: calls of one item at random times, at a share of the rate for one item per call above. Milliseconds
from the time a call was due; in brackets, p99 divided by the p50 of one caller, which is {p50s}."""


@dataclass(frozen=True)
class _Standing:
    """The server's results for one modality."""

    batch_size: int  # of the ceiling
    ceiling: float
    single: Rates  # one item per call
    in_sixteens: Rates
    streamed: Rates
    one_caller: Rates
    open: dict[float, Rates]  # by load


def run(plan: Plan) -> Section:
    """Measures both modalities."""
    with server_process("--checkpoint", plan.checkpoint) as server:
        encoder = bare_encoder(plan.checkpoint)
        standings = {modality: _standing(encoder, server.address, modality, plan) for modality in MODALITIES}
    head = ("items", "ceiling", "one item per call", "16 items per call", "4 streams")
    open_head = ("items", "load", "calls/s", "p50", "p99")
    p50s = " and ".join(f"{number(of.one_caller.p50_ms)} ({name})" for name, of in standings.items())
    return Section(
        f"Saturated: {plan.model}",
        [
            _NOTE,
            table(head, [_row(modality, of) for modality, of in standings.items()]),
            _OPEN_NOTE.format(p50s=p50s),
            table(open_head, [row for modality, of in standings.items() for row in _open_rows(modality, of)]),
        ],
        [bar for modality, of in standings.items() for bar in _bars(modality, of)],
    )


def _standing(encoder: Encoder, address: str, modality: str, plan: Plan) -> _Standing:
    progress(f"{modality}: the ceiling's best batch")
    batch_size = best_offline_batch(encoder, modality)
    many = ClosedLoop(_CONCURRENCY[modality])
    closed: dict[str, Callable[[], Measurement]] = {
        "single": lambda: grpc_round(address, grpc_calls(modality), many, plan.run_length),
        "in_sixteens": lambda: grpc_round(address, grpc_calls(modality, 16), ClosedLoop(8), plan.run_length),
        "streamed": lambda: grpc_round(address, grpc_calls(modality), many, plan.run_length, streams=4),
        "one_caller": lambda: grpc_round(address, grpc_calls(modality), ClosedLoop(1), plan.run_length),
    }
    progress(f"{modality}: ceiling and server")
    rounds = [
        (
            offline_rate(encoder, modality, batch_size, plan.seconds),
            {name: once() for name, once in closed.items()},
        )
        for _ in range(plan.rounds)
    ]
    rates = {name: Rates.of([served[name] for _, served in rounds]) for name in closed}
    progress(f"{modality}: open loop")
    return _Standing(
        batch_size,
        statistics.median(ceiling for ceiling, _ in rounds),
        **rates,
        open=_open_loop(address, modality, rates["single"].items_per_second, plan),
    )


def _open_loop(address: str, modality: str, saturation: float, plan: Plan) -> dict[float, Rates]:
    def once(load: float) -> Measurement:
        rate = load * saturation
        seconds = max(plan.seconds, _MIN_CALLS / rate)
        run_length = RunLength(seconds, warmup_seconds=1.0)
        return grpc_round(address, grpc_calls(modality), OpenLoop(rate), run_length)

    measured = in_turn({load: partial(once, load) for load in _LOADS}, plan.rounds)
    return {load: Rates.of(rounds) for load, rounds in measured.items()}


def _row(modality: str, of: _Standing) -> tuple[object, ...]:
    shares = (f"{rates} ({_share(rates, of)})" for rates in (of.single, of.in_sixteens, of.streamed))
    return modality, f"{number(of.ceiling)} (batch {of.batch_size})", *shares


def _share(rates: Rates, of: _Standing) -> str:
    return f"{rates.items_per_second / of.ceiling:.2f}"


def _open_rows(modality: str, of: _Standing) -> list[tuple[object, ...]]:
    return [
        (
            *(modality, f"{load:.0%}", rates, number(rates.p50_ms)),
            f"{number(rates.p99_ms)} ({ratio(rates.p99_ms, of.one_caller.p50_ms):.1f})",
        )
        for load, rates in of.open.items()
    ]


def _bars(modality: str, of: _Standing) -> list[Bar]:
    share = ratio(of.single.items_per_second, of.ceiling)
    latencies = ratio(of.open[0.7].p99_ms, of.one_caller.p50_ms)
    return [
        Bar(f"served ÷ ceiling, {modality}s", share, _MIN_SHARE[modality]),
        Bar(f"p99 at 70 % ÷ p50 of one caller, {modality}s", latencies, _MAX_LATENCIES, is_ceiling=True),
    ]
