"""Prints the requirements of alignserve and alignserve-server, with extras of the server, one per line.

python requirements.py torch otel
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path


def requirements(root: Path, extras: Sequence[str]) -> list[str]:
    """Returns the requirements of the client, of the server and of its extras."""
    client = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    server = tomllib.loads((root / "server/pyproject.toml").read_text())
    own = server["tool"]["hatch"]["metadata"]["hooks"]["custom"]["dependencies"]
    optional = server["project"]["optional-dependencies"]
    return [*client["dependencies"], *own, *(line for extra in extras for line in optional[extra])]


if __name__ == "__main__":
    print(*requirements(Path(), sys.argv[1:]), sep="\n")
