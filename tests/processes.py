"""Runs the repository's commands as a person at a shell would."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class ServerProcess:
    """A server process and where it listens."""

    process: subprocess.Popen[str]
    port: int
    metrics_port: int

    @property
    def address(self) -> str:
        """Where clients reach it."""
        return f"127.0.0.1:{self.port}"


@contextmanager
def server_process(
    *flags: str, program: Sequence[str] = (str(BIN / "alignserve-server"),)
) -> Iterator[ServerProcess]:
    """Runs alignserve-server with the flags on free ports, and yields it once it is ready.

    `program` may be another one that takes the same flags and logs the same.
    """
    command = [
        *(*program, "--log-format", "json", "--drain-delay-seconds", "0"),
        *("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", *flags),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        try:
            listening = _wait_for("listening", process.stderr)
            _wait_for("ready", process.stderr)
            # The log has to be read on: other programs wait at a full pipe, and the server does at its end.
            threading.Thread(target=deque, args=(process.stderr, 0), daemon=True).start()
            yield ServerProcess(process, listening["port"], listening["metrics_port"])
        finally:
            process.terminate()
            process.wait(timeout=30)


def free_port() -> int:
    """Returns a port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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


def _wait_for(event: str, log: IO[str]) -> dict[str, int]:
    seen = []
    for line in log:
        seen.append(line)
        record: dict[str, int] = (
            json.loads(line) if line.startswith("{") else {}
        )  # libraries warn in plain text
        if record.get("event") == event:
            return record
    raise AssertionError(f"the server ended before {event!r}:\n{''.join(seen)}")
