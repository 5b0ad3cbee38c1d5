"""Measures how a flood affects other callers, and how bulk work affects interactive calls."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from alignserve_server.access.keys import Scope, changed_keys, new_key

from tests.load.callers import Caller, Summary, call_all, capacity
from tests.load.measuring import Plan, progress
from tests.load.overload import FLAGS, PROGRAM
from tests.load.report import Bar, Section, number, ratio, table
from tests.processes import server_process

_POLITE = ("ann", "bob", "cy", "dee")
_POLITE_SHARE = 0.05  # of the capacity, each
_FLOOD_SHARE = 2.0
_INTERACTIVE_SHARE = 0.3
_AT_ONCE = 32
_SECONDS_PER_ROUND_SECOND = 5

_NOTE = """\
Single texts at random times (Poisson), on a server with a model that sleeps (see Overload). Each caller has
an API key. Polite callers each send 5 % of the capacity; the flood sends twice the capacity. One caller sends
both interactive calls, at 30 % of the capacity, and bulk calls, at twice the capacity."""


def run(plan: Plan) -> Section:
    """Measures polite callers without and with a flood, and interactive calls without and with bulk work."""
    seconds = plan.seconds * _SECONDS_PER_ROUND_SECOND
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.json"
        keys = _keys(file, (*_POLITE, "flood"))
        with server_process(*FLAGS, "--api-keys-file", str(file), program=PROGRAM) as server:
            peak = capacity(server.address, 3.0, at_once=_AT_ONCE, key=keys["ann"])
            polite = [Caller(_POLITE_SHARE * peak, keys[name]) for name in _POLITE]
            flood = Caller(_FLOOD_SHARE * peak, keys["flood"])
            interactive = Caller(_INTERACTIVE_SHARE * peak, keys["ann"])
            bulk = Caller(_FLOOD_SHARE * peak, keys["ann"], is_bulk=True)
            flooding = Caller(_FLOOD_SHARE * peak, keys["ann"])
            progress("a flood")
            without = call_all(server.address, polite, seconds)
            flooded = call_all(server.address, [*polite, flood], seconds)
            progress("bulk work")
            quiet = call_all(server.address, [interactive], seconds)
            busy = call_all(server.address, [interactive, bulk], seconds)
            starving = call_all(server.address, [flooding, bulk], seconds)
    rows = {
        "four polite callers, without the flood": without,
        "four polite callers, with the flood": flooded[:-1],
        "the flood": flooded[-1:],
        "interactive, without bulk": quiet,
        "interactive, with bulk": busy[:1],
        "bulk, with interactive at 30 %": busy[1:],
        "interactive at 200 %": starving[:1],
        "bulk, with interactive at 200 %": starving[1:],
    }
    head = ("calls", "sent/s", "answered/s", "p50 ms", "p99 ms", "refused")
    return Section(
        "Fair shares",
        [_NOTE, f"Capacity: {number(peak)} texts/s.", table(head, [_row(*each) for each in rows.items()])],
        _bars(peak, {name: _together(of) for name, of in rows.items()}),
    )


def _bars(peak: float, of: Mapping[str, Summary]) -> list[Bar]:
    without, flooded = (of[f"four polite callers, {name} the flood"] for name in ("without", "with"))
    quiet, busy = of["interactive, without bulk"], of["interactive, with bulk"]
    starved = of["bulk, with interactive at 200 %"]
    return [
        Bar("polite callers' p99, flood ÷ no flood", _ratio_of_p99(flooded, without), 2.5, is_ceiling=True),
        Bar("polite callers' refused calls, flood", float(len(flooded.refused)), 0.0, is_ceiling=True),
        Bar("interactive p99, bulk ÷ no bulk", _ratio_of_p99(busy, quiet), 2.5, is_ceiling=True),
        Bar("bulk answers ÷ capacity with interactive calls at 200 %", starved.rate / peak, 0.03),
    ]


def _ratio_of_p99(one: Summary, other: Summary) -> float:
    return ratio(one.answered_ms(99), other.answered_ms(99))


def _row(name: str, summaries: Sequence[Summary]) -> tuple[str, ...]:
    of = _together(summaries)
    return (
        name,
        number(len(of.outcomes) / of.seconds),
        number(of.rate),
        number(of.answered_ms(50)),
        number(of.answered_ms(99)),
        f"{len(of.refused) / len(of.outcomes):.1%}",
    )


def _together(summaries: Sequence[Summary]) -> Summary:
    return Summary([each for of in summaries for each in of.outcomes], summaries[0].seconds)


def _keys(file: Path, names: Sequence[str]) -> dict[str, str]:
    made = {}
    with changed_keys(file) as keys:
        for name in names:
            made[name], keys[name] = new_key(name, frozenset({Scope.EMBED}))
    return made
