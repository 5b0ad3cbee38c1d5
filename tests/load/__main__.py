"""`make bench`: measures on this machine, prints the results and writes tests/load/RESULTS.md.

python -m tests.load [--sections latency,…] [--checkpoint ID_OR_FOLDER] [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tests.load import beside, dtypes, latency, overhead, throughput

RESULTS = Path(__file__).parent / "RESULTS.md"

_PACKAGES = ("torch", "transformers", "openvino", "grpcio", "pillow", "mosec", "litserve")


def main() -> int:
    """Runs the benchmarks."""
    arguments = _parse()
    sections: dict[str, Callable[[], str]] = {
        "latency": lambda: latency.run(arguments.checkpoint, arguments.rounds),
        "throughput": lambda: throughput.run(arguments.checkpoint, arguments.rounds, arguments.seconds),
        "beside": lambda: beside.run(arguments.checkpoint, arguments.rounds, arguments.seconds),
        "dtypes": lambda: dtypes.run(arguments.checkpoint, arguments.rounds, arguments.seconds),
        "overhead": lambda: overhead.run(arguments.rounds, arguments.seconds),
    }
    parts = [_heading(arguments)]
    for name in arguments.sections.split(","):
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        parts.append(sections[name]())
        print(parts[-1], flush=True)
    arguments.output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description="Measures alignserve on this machine.")
    parser.add_argument("--checkpoint", default="mini", help="folder or hub id (default: mini)")
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement (default: 3)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of a round (default: 6)")
    parser.add_argument(
        "--sections",
        default="latency,throughput,beside,overhead",
        help="what to measure, also dtypes (default: latency,throughput,beside,overhead)",
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="file for the results")
    return parser.parse_args()


def _heading(arguments: argparse.Namespace) -> str:
    command = (
        f"python -m tests.load --checkpoint {arguments.checkpoint} --rounds {arguments.rounds} "
        f"--seconds {arguments.seconds:g} --sections {arguments.sections}"
    )
    date = datetime.now(timezone.utc).date()
    return (
        f"# Measured\n\n`{command}`, {date}, {_processor()}, Python {platform.python_version()}, "
        f"{_software()}.\n\n"
        "Client and server share this machine. Compare figures within one section only."
    )


def _software() -> str:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else ():
        if line.startswith("model name"):
            return f"{os.cpu_count()} cores of {line.split(':', 1)[1].strip()}"
    return f"{os.cpu_count()} cores of {platform.processor() or platform.machine()}"


if __name__ == "__main__":
    raise SystemExit(main())
