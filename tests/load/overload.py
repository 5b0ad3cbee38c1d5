"""Measures answers, refusals and latency at twice as many calls as the server can answer."""

from __future__ import annotations

import sys
from dataclasses import replace

from tests.load.callers import Caller, Summary, call_all, capacity
from tests.load.measuring import Memory, Plan, progress
from tests.load.report import Bar, Section, number, ratio, table
from tests.processes import ServerProcess, server_process

PROGRAM = (sys.executable, "-m", "tests.load.peers.sleeping_server")
MAX_BATCH_SIZE = 16
FLAGS = ("--max-batch-size", str(MAX_BATCH_SIZE), "--text-cache-bytes", "0")  # a cache would grow meanwhile

_AT_ONCE = 32  # two batches: one runs, one waits
_PERCENT_OF_CAPACITY = (80, 200)
_SECONDS_PER_ROUND_SECOND = 20  # a minute with the default rounds of three seconds
_UNBOUNDED = "no deadline"  # the wait is as long as the queue, a thousand items by default
_CASES = {  # server flags, deadline of the calls
    "a deadline of 250 ms": ((), 0.25),
    "no deadline, --max-queue-size 64": (("--max-queue-size", "64"), None),
    _UNBOUNDED: ((), None),
}

_NOTE = f"""\
Single texts at random times (Poisson), from one caller that does not retry refused calls. The model sleeps,
20 ms per batch and 2 ms per entry, at most {MAX_BATCH_SIZE} entries, so that it takes no core from client and
server. Capacity is the rate of {_AT_ONCE} callers that wait for their answers. "Late" calls were neither
answered nor refused before their deadline. Memory is the growth of resident memory during the run."""


def run(plan: Plan) -> Section:
    """Measures each case at both loads, for twenty times the seconds of a round."""
    seconds = plan.seconds * _SECONDS_PER_ROUND_SECOND
    rows: list[tuple[object, ...]] = []
    bars: list[Bar] = []
    for name, (flags, deadline) in _CASES.items():
        progress(name)
        with server_process(*FLAGS, *flags, program=PROGRAM) as server:
            peak = capacity(server.address, 3.0, at_once=_AT_ONCE)
            caller = Caller(peak, timeout_seconds=deadline)
            measured = {
                percent: _load(server, replace(caller, rate=peak * percent / 100), seconds)
                for percent in _PERCENT_OF_CAPACITY
            }
        rows += [(name, f"{percent} %", *_row(peak, *of)) for percent, of in measured.items()]
        if name != _UNBOUNDED:
            bars += _bars(name, peak, measured[80][0], *measured[200])
    head = ("case", "load", "capacity", "answered/s", "p50 ms", "p99 ms", "refused", "refusal p99 ms")
    return Section("Overload", [_NOTE, table((*head, "late", "memory MB"), rows)], bars)


def _load(server: ServerProcess, caller: Caller, seconds: float) -> tuple[Summary, float]:
    before = Memory.of(server.process).rss_mb
    (summary,) = call_all(server.address, [caller], seconds)
    return summary, Memory.of(server.process).rss_mb - before


def _row(peak: float, of: Summary, grown_mb: float) -> tuple[str, ...]:
    count = len(of.outcomes)
    return (
        number(peak),
        number(of.rate),
        number(of.answered_ms(50)),
        number(of.answered_ms(99)),
        f"{ratio(len(of.refused), count) if of.refused else 0:.1%}",
        number(of.refused_ms(99)) if of.refused else "",
        f"{of.late / count:.1%}",
        f"{grown_mb:+.1f}",
    )


def _bars(name: str, peak: float, below: Summary, above: Summary, grown_mb: float) -> list[Bar]:
    with_delay = sum(each.error.retry_delay_seconds is not None for each in above.refused if each.error)
    return [
        Bar(f"{name}: answers at 200 % ÷ capacity", ratio(above.rate, peak), 0.9),
        Bar(
            f"{name}: p99 at 200 % ÷ p99 at 80 %",
            ratio(above.answered_ms(99), below.answered_ms(99)),
            2.0,
            is_ceiling=True,
        ),
        Bar(f"{name}: p99 of refusals, ms", above.refused_ms(99), 10.0, is_ceiling=True),
        Bar(f"{name}: share of refusals with a retry delay", ratio(with_delay, len(above.refused)), 1.0),
        Bar(f"{name}: memory at 200 %, MB", grown_mb, 20.0, is_ceiling=True),
    ]
