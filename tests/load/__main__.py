"""`make bench`: measures on this machine, prints the results and writes tests/load/RESULTS.md.

python -m tests.load [--rounds N] [--checkpoint ID_OR_FOLDER]
"""

from __future__ import annotations

import argparse
import platform
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from tests.load import latency

RESULTS = Path(__file__).parent / "RESULTS.md"


def main() -> int:
    """Runs the benchmarks."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measures alignserve on this machine.")
    parser.add_argument("--checkpoint", default="mini", help="folder or hub id (default: mini)")
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement (default: 5)")
    arguments = parser.parse_args()
    sections = [latency.run(arguments.checkpoint, arguments.rounds)]
    page = "\n\n".join([_heading(arguments), *sections]) + "\n"
    RESULTS.write_text(page, encoding="utf-8")
    print(page)
    return 0


def _heading(arguments: argparse.Namespace) -> str:
    command = f"python -m tests.load --checkpoint {arguments.checkpoint} --rounds {arguments.rounds}"
    date = datetime.now(timezone.utc).date()
    software = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "grpcio", "pillow"))
    return (
        f"# Measured\n\n"
        f"`{command}`, {date}, {_processor()}, Python {platform.python_version()}, {software}.\n\n"
        "Client and server share this machine. Compare figures within this page only."
    )


def _processor() -> str:
    import os

    for line in Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else ():
        if line.startswith("model name"):
            return f"{os.cpu_count()} cores of {line.split(':', 1)[1].strip()}"
    return f"{os.cpu_count()} cores of {platform.processor() or platform.machine()}"


if __name__ == "__main__":
    raise SystemExit(main())
