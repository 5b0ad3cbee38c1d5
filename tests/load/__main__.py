"""`make bench`: measures on this machine, prints the results and writes tests/load/RESULTS.md.

python -m tests.load [--sections latency,…] [--checkpoint ID_OR_FOLDER] [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import signal
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tests.load import (
    beside,
    cache,
    dtypes,
    fairness,
    growth,
    http_port,
    latency,
    neighbour,
    overhead,
    overload,
    pairs,
    plan_check,
    resources,
    throughput,
    watching,
)
from tests.load.measuring import Plan
from tests.load.peers import environments
from tests.load.processor import processor
from tests.load.report import Section, summary

RESULTS = Path(__file__).parent / "RESULTS.md"

_SECTIONS = {
    "latency": latency.run,
    "throughput": throughput.run,
    "beside": beside.run,
    "peers": pairs.run,
    "neighbour": neighbour.run,
    "resources": resources.run,
    "cache": cache.run,
    "overhead": overhead.run,
    "growth": growth.run,
    "dtypes": dtypes.run,
    "overload": overload.run,
    "fairness": fairness.run,
    "watching": watching.run,
    "http": http_port.run,
    "plan": plan_check.run,
}
_PACKAGES = ("torch", "transformers", "openvino", "grpcio", "pillow", "mosec", "litserve", "ray")


def main() -> int:
    """Runs the benchmarks."""
    arguments = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are stopped too
    plan = Plan(arguments.checkpoint, arguments.rounds, arguments.seconds)
    heading = _heading(plan, arguments.sections)
    done: list[Section] = []
    for name in arguments.sections:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        start = time.monotonic()
        done.append(_SECTIONS[name](plan))
        print(f"{name} took {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        print(done[-1].markdown, end="\n\n", flush=True)
        arguments.output.write_text(_document(heading, done), encoding="utf-8")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description="Measures alignserve on this machine.")
    parser.add_argument("--checkpoint", default="mini", help="folder or hub id (default: mini)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each measurement (default: 3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of a round (default: 3)")
    parser.add_argument(
        "--sections",
        type=_section_names,
        default=list(_SECTIONS),
        help=f"sections to measure (default: {','.join(_SECTIONS)})",
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="file to write the results to")
    return parser.parse_args()


def _section_names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(_SECTIONS):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; sections: {', '.join(_SECTIONS)}")
    return names


def _document(heading: str, done: list[Section]) -> str:
    bars = [bar for section in done for bar in section.bars]
    sections = [*([summary(bars)] if bars else []), *done]
    return "\n\n".join([heading, *(section.markdown for section in sections)]) + "\n"


def _heading(plan: Plan, sections: list[str]) -> str:
    command = (
        f"python -m tests.load --checkpoint {shlex.quote(plan.checkpoint)} --rounds {plan.rounds} "
        f"--seconds {plan.seconds:g} --sections {','.join(sections)}"
    )
    date = datetime.now(UTC).date()
    return (
        f"# Measurements\n\n`{command}`, {date}, {processor()}, Python {platform.python_version()}, "
        f"{_software()}.\n\n"
        f"Load average before the run: {os.getloadavg()[0]:.1f}. Client and server share this machine. "
        "Figures are medians of the rounds; compare them only within a section."
    )


def _software() -> str:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join([*found, *environments.versions()])


if __name__ == "__main__":
    raise SystemExit(main())
