"""Prints what alignserve needs with some of its extras, a line each.

python requirements.py server openvino
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import tomllib  # type: ignore[import-not-found]  # the image has it, the oldest Python that is checked for does not


def requirements(pyproject: Path, extras: Sequence[str]) -> list[str]:
    """Returns the requirements of the client and of the extras."""
    project = tomllib.loads(pyproject.read_text())["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


if __name__ == "__main__":
    print(*requirements(Path("pyproject.toml"), sys.argv[1:]), sep="\n")
