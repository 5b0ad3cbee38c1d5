"""Measures what the text embedding cache saves if callers send the same texts."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from alignserve._bench.inputs import Inputs
from alignserve._bench.load import ClosedLoop
from alignserve._bench.sentences import sentences
from alignserve._bench.workload import UnaryRequest, calls

from tests.load.measuring import Plan, Rates, grpc_round, in_turn, progress
from tests.load.report import Section, number, ratio, table
from tests.processes import server_process

_TEXTS = 10_000
_CALLERS = 64
_CALLS_AT_A_TIME = 256

_NOTE = f"""\
Texts are drawn from {_TEXTS:,} captions like words in a language: the n-th most frequent caption occurs 1/n
times as often as the first (Zipf). {_CALLERS} callers; the servers take turns and keep their caches. In all
other sections no text occurs twice."""


def run(plan: Plan) -> Section:
    """Measures a server without the cache and one with the default cache."""
    progress("off and on")
    ours = ("--checkpoint", plan.checkpoint)
    seeds = itertools.count()
    with server_process(*ours, "--text-cache-bytes", "0") as off, server_process(*ours) as on:
        measures = {
            name: lambda address=server.address: grpc_round(
                address, _calls(next(seeds)), ClosedLoop(_CALLERS), plan.run_length
            )
            for name, server in {"off": off, "on": on}.items()
        }
        rates = {name: Rates.of(rounds) for name, rounds in in_turn(measures, plan.rounds).items()}
    head = ("cache", "texts/s", "÷ off", "p50 ms", "p99 ms")
    rows = [
        (
            name,
            of,
            f"{ratio(of.items_per_second, rates['off'].items_per_second):.2f}",
            number(of.p50_ms),
            number(of.p99_ms),
        )
        for name, of in rates.items()
    ]
    return Section(f"Repeated texts: {plan.model}", [_NOTE, table(head, rows)])


def _calls(seed: int) -> Iterator[UnaryRequest]:
    rng = random.Random(seed)
    texts = sentences(_TEXTS, "mixed", seed=0)
    weights = list(itertools.accumulate(1 / rank for rank in range(1, _TEXTS + 1)))
    while True:
        drawn = rng.choices(texts, cum_weights=weights, k=_CALLS_AT_A_TIME)
        inputs = Inputs(texts=drawn, is_unique=False)
        yield from itertools.islice(calls({"text": 1.0}, inputs, seed), _CALLS_AT_A_TIME)
