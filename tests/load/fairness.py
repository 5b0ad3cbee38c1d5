"""What callers notice of one that floods the server, and interactive ones of bulk work."""

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
Single texts at random times (Poisson), on the server with a model that sleeps (see Overload). Each caller has
an API key. Polite callers send 5 % of the capacity each, the flood twice the capacity. Interactive calls are
30 % of it, bulk calls twice as many as it, from the same caller."""


def run(plan: Plan) -> Section:
    """Measures polite callers without and with a flood, and interactive calls without and with bulk ones."""
    seconds = plan.seconds * _SECONDS_PER_ROUND_SECOND
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.json"
        keys = _keys(file, (*_POLITE, "flood"))
        with server_process(*FLAGS, "--api-keys-file", str(file), program=PROGRAM) as server:
            most = capacity(server.address, 3.0, at_once=_AT_ONCE, key=keys["ann"])
            polite = [Caller(_POLITE_SHARE * most, keys[name]) for name in _POLITE]
            flood = Caller(_FLOOD_SHARE * most, keys["flood"])
            interactive = Caller(_INTERACTIVE_SHARE * most, keys["ann"])
            bulk = Caller(_FLOOD_SHARE * most, keys["ann"], is_bulk=True)
            flooding = Caller(_FLOOD_SHARE * most, keys["ann"])
            progress("a flood")
            alone = call_all(server.address, polite, seconds)
            beside = call_all(server.address, [*polite, flood], seconds)
            progress("bulk work")
            quiet = call_all(server.address, [interactive], seconds)
            busy = call_all(server.address, [interactive, bulk], seconds)
            starving = call_all(server.address, [flooding, bulk], seconds)
    rows = {
        "four polite callers, alone": alone,
        "four polite callers, beside the flood": beside[:-1],
        "the flood": beside[-1:],
        "interactive, alone": quiet,
        "interactive, beside bulk": busy[:1],
        "bulk, beside interactive at 30 %": busy[1:],
        "interactive at 200 %": starving[:1],
        "bulk, beside interactive at 200 %": starving[1:],
    }
    head = ("who", "asked/s", "answered/s", "p50 ms", "p99 ms", "refused")
    return Section(
        "Fair shares",
        [_NOTE, f"Capacity: {number(most)} texts/s.", table(head, [_row(*each) for each in rows.items()])],
        _bars(most, {name: _together(of) for name, of in rows.items()}),
    )


def _bars(most: float, of: Mapping[str, Summary]) -> list[Bar]:
    alone, beside = of["four polite callers, alone"], of["four polite callers, beside the flood"]
    quiet, busy = of["interactive, alone"], of["interactive, beside bulk"]
    starved = of["bulk, beside interactive at 200 %"]
    return [
        Bar("polite callers' p99 beside a flood ÷ alone", _ratio_of_p99(beside, alone), 2.5, is_ceiling=True),
        Bar("polite callers' calls refused beside a flood", float(len(beside.refused)), 0.0, is_ceiling=True),
        Bar("interactive p99 beside bulk ÷ alone", _ratio_of_p99(busy, quiet), 2.5, is_ceiling=True),
        Bar("bulk answers ÷ capacity while interactive calls are too many", starved.rate / most, 0.03),
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
