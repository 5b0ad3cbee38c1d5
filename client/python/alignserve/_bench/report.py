"""Formats a sweep as text for people."""

from __future__ import annotations

from collections.abc import Iterator

from alignserve._bench.document import PERCENTILES
from alignserve._bench.histogram import Histogram
from alignserve._bench.load import OpenLoop
from alignserve._bench.recorder import Measurement
from alignserve._bench.sweep import Sweep
from alignserve._cli.render import table

_ROWS = 12
_BAR = 40
_BUSY_CORES = 0.9  # Python keeps hardly more than one core busy
_LATE_SECONDS = 0.005
_KEPT_UP = 0.95  # share of the requests due; some are always in flight at the end


def report(sweep: Sweep) -> str:
    """Returns the results with their setup, and notes about their validity."""
    parts = [_heading(sweep), _table(sweep.measurements)]
    if len(sweep.measurements) == 1 and sweep.measurements[0].succeeded:
        parts.append(latency_chart(sweep.measurements[0].latency))
    remarks = "\n".join(note for one in sweep.measurements for note in notes(one))
    return "\n\n".join(part for part in (*parts, remarks) if part)


def latency_chart(latency: Histogram) -> str:
    """Draws the distribution of latencies, in rows of equal ratio."""
    rows = latency.spread(_ROWS)
    most = max(count for _, _, count in rows)
    lines = [
        (f"{ms(low)} to {ms(high)} ms", f"{count:,}", "█" * -(-_BAR * count // most))
        for low, high, count in rows
    ]
    return table(("latency", "requests", ""), lines, right=(0, 1))


def notes(one: Measurement) -> Iterator[str]:
    """Yields notes about the validity of the numbers."""
    at = f"{one.load.mode} {one.load.value:g}"
    for (code, reason), found in one.failures.items():
        name = " ".join(part for part in (code, reason) if part)
        yield f"{at}: {found.count:,} failed with {name}: {' '.join(found.example.message.split())}"
    if one.was_interrupted:
        yield f"{at}: interrupted after {one.seconds:.1f} s, with {one.unfinished:,} requests in flight"
    if isinstance(one.load, OpenLoop):
        yield from _open_loop_notes(one, at, one.load)
    if one.client_cores > _BUSY_CORES and one.seconds >= 1:
        yield (
            f"{at}: sending kept {one.client_cores:.1f} cores busy; "
            "the client may be the bottleneck, so run several at once, or on another machine"
        )


def ms(seconds: float) -> str:
    """Returns milliseconds with three digits, or more if there are more before the decimal point."""
    value = seconds * 1e3
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{decimals}f}"


def _heading(sweep: Sweep) -> str:
    model, chosen = sweep.model, sweep.settings
    work = chosen["work"]
    if work == "mix":
        work = ", ".join(f"{kind}={weight:g}" for kind, weight in chosen["mix"].items())
    over = f"{chosen['streams']} streams, " if chosen["transport"] == "stream" else ""
    limit = f" or {chosen['max_requests']:,} requests" if chosen["max_requests"] else ""
    return (
        f"{sweep.server}: {model.model_id}, {model.runtime} {model.dtype} on {model.device}, "
        f"version {model.server_version}\n"
        f"{work}, {chosen['items_per_request']} per request, {'unique' if chosen['unique'] else 'repeated'}; "
        f"{chosen['transport']}, {over}connections {chosen['connections']}; "
        f"{chosen['duration_seconds']:g} s{limit} after {chosen['warmup_seconds']:g} s; seed {chosen['seed']}"
    )


def _table(measurements: list[Measurement]) -> str:
    columns = [name.replace("_", ".") for name in PERCENTILES]
    header = (
        measurements[0].load.mode,
        "requests/s",
        "items/s",
        "requests",
        "failed",
        "mean ms",
        *columns,
        "max",
    )
    return table(header, [_row(one) for one in measurements], right=range(len(header)))


def _row(one: Measurement) -> tuple[str, ...]:
    latency = one.latency
    durations = [latency.mean, *map(latency.percentile, PERCENTILES.values()), latency.max]
    return (
        f"{one.load.value:,g}",
        f"{one.requests_per_second:,.1f}",
        f"{one.items_per_second:,.1f}",
        f"{one.requests:,}",
        f"{one.failed:,}",
        *(ms(seconds) if latency.count else "-" for seconds in durations),
    )


def _open_loop_notes(one: Measurement, at: str, load: OpenLoop) -> Iterator[str]:
    due_per_second = one.requests / one.seconds if one.seconds else 0.0  # differs from the rate by chance
    if one.requests_per_second < _KEPT_UP * due_per_second:
        yield (
            f"{at}: the server did not keep up; {one.requests_per_second:,.1f} of {due_per_second:,.1f} "
            "requests per second were answered in time"
        )
    late = one.send_delay.percentile(99)
    if late > _LATE_SECONDS:
        yield (
            f"{at}: one request in a hundred was sent {ms(late)} ms late or more, which counts as latency; "
            f"this machine is too slow, or {load.max_in_flight:,} were in flight (--max-in-flight)"
        )
