"""Runs the repository's commands as a person at a shell would."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.contract.documents import ROOT

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class RunningServer:
    """Where a server process listens."""

    port: int
    metrics_port: int


def run(*command: str | Path, cwd: Path = ROOT, path: Path = BIN) -> subprocess.CompletedProcess[str]:
    """Runs a command without input, with `path` first among the folders of programs."""
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
