"""A real `alignserve-server` process on the embedded checkpoint, shared by the tests of commands."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import IO

import pytest

from tests.contract.documents import ROOT
from tests.contract.processes import BIN, RunningServer


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """A server that is ready."""
    command = [
        *(str(BIN / "alignserve-server"), "--log-format", "json"),
        *("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--drain-delay-seconds", "0"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        try:
            listening = _wait_for("listening", process.stderr)
            _wait_for("ready", process.stderr)
            yield RunningServer(listening["port"], listening["metrics_port"])
        finally:
            process.terminate()
            process.communicate(timeout=30)


def _wait_for(event: str, log: IO[str]) -> dict[str, int]:
    seen = []
    for line in log:
        seen.append(line)
        record: dict[str, int] = json.loads(line)
        if record["event"] == event:
            return record
    raise AssertionError(f"the server ended before {event!r}:\n{''.join(seen)}")
