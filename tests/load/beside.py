"""Compares alignserve with a plain server and mosec, with the same checkpoint, at several loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from alignserve._bench.load import ClosedLoop

from tests.load.contenders import ALIGNSERVE, ALIGNSERVE_TORCH, MOSEC, PLAIN, Contender, contenders, peers
from tests.load.inputs import MODALITIES
from tests.load.measuring import Memory, Plan, Rates, in_turn, progress
from tests.load.report import Bar, Section, number, ratio, table

_NOTE = """\
Calls of one item; medians. alignserve runs with its defaults, then in bfloat16 if the processor supports it,
then on torch in float32 like the others, which use plain transformers. Texts have 3 to 46 words. Memory is
that of all processes after all loads; shared pages count once."""


@dataclass(frozen=True)
class _Standing:
    """The results of one server."""

    one: Mapping[str, Rates]  # by modality, with one caller
    many: Mapping[str, Rates]  # with 64 callers
    memory: Memory


def run(plan: Plan) -> Section:
    """Measures all installed contenders, one after the other."""
    mosec = [each for each in peers(plan.checkpoint) if each.name == MOSEC]
    everyone = [*contenders(plan.checkpoint), *mosec]
    standings = {each.name: _standing(each, plan) for each in everyone if each.absence is None}
    head = ("items", "server", "items/s at 64", "alignserve ÷ it", "p50 ms at 1", "p99 ms at 64", "memory MB")
    rows = [_row(modality, name, standings) for modality in MODALITIES for name in standings]
    skipped = [f"Not measured: {each.name}, {each.absence}." for each in everyone if each.absence]
    paragraphs = [_NOTE, table(head, rows), *skipped]
    return Section(f"Compared with others: {plan.model}", paragraphs, _bars(standings))


def _standing(contender: Contender, plan: Plan) -> _Standing:
    progress(contender.name)
    with contender.start() as server:
        measures = {
            (modality, callers): partial(server.measure, modality, ClosedLoop(callers), plan.run_length)
            for modality in MODALITIES
            for callers in (1, 64)
        }
        rates = {load: Rates.of(rounds) for load, rounds in in_turn(measures, plan.rounds).items()}
        return _Standing(
            one={modality: rates[modality, 1] for modality in MODALITIES},
            many={modality: rates[modality, 64] for modality in MODALITIES},
            memory=Memory.of(server.process),
        )


def _row(modality: str, name: str, standings: Mapping[str, _Standing]) -> tuple[object, ...]:
    one, many = standings[name].one[modality], standings[name].many[modality]
    ours = standings[ALIGNSERVE].many[modality]
    gain = ratio(ours.items_per_second, many.items_per_second)
    return (
        *(modality, name, many, f"{gain:.2f}", number(one.p50_ms), number(many.p99_ms)),
        f"{standings[name].memory.pss_mb:.0f}",
    )


def _bars(standings: Mapping[str, _Standing]) -> list[Bar]:
    def throughput(modality: str, *names: str) -> float:
        return ratio(*(standings[name].many[modality].items_per_second for name in names))

    def latency(modality: str, *names: str) -> float:
        return ratio(*(standings[name].one[modality].p50_ms for name in names))

    bars = [
        Bar("images/s ÷ plain server", throughput("image", ALIGNSERVE, PLAIN), 3.0),
        Bar("texts/s ÷ plain server", throughput("text", ALIGNSERVE, PLAIN), 5.0),
    ]
    if MOSEC not in standings:
        return bars
    memory = ratio(standings[ALIGNSERVE].memory.pss_mb, standings[MOSEC].memory.pss_mb)
    return [
        *bars,
        Bar("images/s on torch ÷ mosec", throughput("image", ALIGNSERVE_TORCH, MOSEC), 1.0),
        Bar("texts/s on torch ÷ mosec", throughput("text", ALIGNSERVE_TORCH, MOSEC), 1.0),
        Bar(
            "p50 of one image on torch ÷ mosec",
            latency("image", ALIGNSERVE_TORCH, MOSEC),
            0.7,
            is_ceiling=True,
        ),
        Bar(
            "p50 of one text on torch ÷ mosec", latency("text", ALIGNSERVE_TORCH, MOSEC), 0.7, is_ceiling=True
        ),
        Bar("images/s ÷ mosec", throughput("image", ALIGNSERVE, MOSEC), 3.0),
        Bar("texts/s ÷ mosec", throughput("text", ALIGNSERVE, MOSEC), 2.0),
        Bar("memory ÷ mosec", memory, 1.0, is_ceiling=True),
    ]
