"""Measures what crafted images cost a server: python -m tests.hostile.measure_images --before FOLDER.

FOLDER has another `alignserve_server`. The table goes to standard output, as in
tests/hostile/RESULTS-images.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from tests.hostile.crafted import SIZES, SLOW
from tests.hostile.lag import TickingServer, ticking_server
from tests.hostile.live import DECODE_THREADS, IMAGE_FORMATS, LiveServer, MemoryWatch, outcome_of
from tests.integration.serving import connect, image_request
from tests.processes import ROOT

_AT_ONCE = 4  # concurrent calls, of one image each
_TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class Cost:
    """The cost of one kind of file, sent several times at once."""

    outcome: str
    seconds: float
    lag_seconds: float
    growth_bytes: int


async def _cost(ticking: TickingServer, content: bytes, at_once: int) -> Cost:
    async with connect(ticking.server.port) as channel:
        live = LiveServer(ticking.server, channel)
        await live.good_embedding()
        memory = MemoryWatch(ticking.server.process.pid)
        began = time.monotonic()
        async with ticking.lag() as lag:
            calls = [
                outcome_of(live.stub.EmbedImage(image_request(content), timeout=_TIMEOUT_SECONDS))
                for _ in range(at_once)
            ]
            outcomes = {outcome.reason or outcome.code for outcome in await asyncio.gather(*calls)}
        seconds = time.monotonic() - began
        return Cost(" ".join(sorted(outcomes)), seconds, lag.seconds, memory.growth)


def _measure(names: list[str]) -> dict[str, Cost]:
    """Starts a server for each kind of file, so that memory growth does not carry over."""
    costs = {}
    for name, build in {**SIZES, **SLOW}.items():
        if names and name not in names:
            continue
        with ticking_server("--decode-threads", str(DECODE_THREADS)) as ticking:
            costs[name] = asyncio.run(_cost(ticking, build(), 1 if name in SIZES else _AT_ONCE))
        print(name, costs[name], file=sys.stderr)
    return costs


def _measure_other(folder: Path, names: list[str]) -> dict[str, Cost]:
    paths = os.pathsep.join([str(folder), str(ROOT / "client" / "python")])
    command = [sys.executable, "-m", "tests.hostile.measure_images", "--json", *names]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, check=True
    )
    return {name: Cost(**cost) for name, cost in json.loads(done.stdout).items()}


def _table(before: dict[str, Cost], after: dict[str, Cost]) -> str:
    lines = [
        "| file | bytes | at once | outcome | seconds | longest lag, ms | memory, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, cost in after.items():
        old = before.get(name, cost)
        size = len({**SIZES, **SLOW}[name]())
        at_once = 1 if name in SIZES else _AT_ONCE
        cells = [
            _change(old.outcome, cost.outcome),
            _change(f"{old.seconds:.2f}", f"{cost.seconds:.2f}"),
            _change(f"{1000 * old.lag_seconds:.0f}", f"{1000 * cost.lag_seconds:.0f}"),
            _change(f"{old.growth_bytes / 1e6:.0f}", f"{cost.growth_bytes / 1e6:.0f}"),
        ]
        lines.append(f"| {name} | {size:,} | {at_once} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _change(old: str, new: str) -> str:
    return new if old == new else f"{old} → {new}"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="has the other alignserve_server")
    parser.add_argument("--json", action="store_true", help="only this version, as JSON")
    os.environ["ALIGNSERVE_EXTRA_IMAGE_FORMATS"] = (
        IMAGE_FORMATS  # a server that has no such setting ignores it
    )
    parser.add_argument("names", nargs="*", help="names of crafted files; default: all")
    arguments = parser.parse_args()
    after = _measure(arguments.names)
    if arguments.json:
        print(json.dumps({name: asdict(cost) for name, cost in after.items()}))
        return
    before = _measure_other(arguments.before, arguments.names) if arguments.before else {}
    print(_table(before, after))
    print(f"\n{os.cpu_count()} cores of {platform.machine()}, {date.today().isoformat()}.")  # noqa: DTZ011


if __name__ == "__main__":
    main()
