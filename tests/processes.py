"""Runs the repository's commands as a user at a shell would."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SERVER = (str(BIN / "alignserve-server"),)


def python_of(checkout: Path) -> tuple[str, ...]:
    """Returns the command that runs Python with the packages of a checkout."""
    return ("env", f"PYTHONPATH={checkout}/server:{checkout}/client/python", sys.executable)


def server_of(checkout: Path) -> tuple[str, ...]:
    """Returns the program `alignserve-server` of a checkout."""
    return (*python_of(checkout), "-c", "from alignserve_server.cli.main import main; main()")


@dataclass(frozen=True)
class ServerProcess:
    """A server process and its addresses."""

    process: subprocess.Popen[str]
    port: int
    metrics_port: int
    http_port: int = 0  # without --http-listen
    workers: Mapping[str, int] = field(default_factory=dict)  # process ids by name

    @property
    def address(self) -> str:
        """The address for clients."""
        return f"127.0.0.1:{self.port}"


@contextmanager
def server_process(
    *flags: str,
    program: Sequence[str] = SERVER,
    listen: str = "127.0.0.1:0",
    log: Path | None = None,
) -> Iterator[ServerProcess]:
    """Runs alignserve-server with the flags, by default on free ports, and yields it once it is ready.

    `program` may be another program with the same flags and log events; `log` keeps the server's log.
    """
    command = [
        *(*program, "--log-format", "json", "--drain-delay-seconds", "0"),
        *("--listen", listen, "--metrics-listen", "127.0.0.1:0", *flags),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        try:
            lines = _kept(process.stderr, log)
            started = _events_until("ready", lines)
            (listening,) = (event for event in started if event["event"] == "listening")
            # The log must be drained: a full pipe blocks other programs, and the server at its exit.
            threading.Thread(target=deque, args=(lines, 0), daemon=True).start()
            yield ServerProcess(
                process,
                listening["port"],
                listening["metrics_port"],
                listening.get("http_port", 0),
                {event["worker"]: event["pid"] for event in started if event["event"] == "worker_ready"},
            )
        finally:
            process.terminate()
            process.wait(timeout=30)


@contextmanager
def socket_folder() -> Iterator[Path]:
    """Yields a new folder whose name leaves room for a socket's, however long TMPDIR is."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


_reserved: list[socket.socket] = []


def free_port() -> int:
    """Returns a port for a server that cannot listen on port 0.

    The port stays bound, without listening, until this process ends: the system gives it to no other
    socket, and connections are refused. Servers that set SO_REUSEADDR or SO_REUSEPORT can listen there;
    nearly all do.
    """
    reservation = socket.socket()
    _reserved.append(reservation)
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        reservation.setsockopt(socket.SOL_SOCKET, option, 1)
    reservation.bind(("127.0.0.1", 0))
    port: int = reservation.getsockname()[1]
    return port


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Polls until a condition holds, for conditions without an event to wait for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition did not hold within {seconds:g} s"
        time.sleep(0.01)


def is_listening(port: int) -> bool:
    """Returns whether connections to a local port are accepted."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def run(*command: str | Path, cwd: Path = ROOT, path: Path = BIN) -> subprocess.CompletedProcess[str]:
    """Runs a command without input, with `path` first in PATH."""
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


def _kept(lines: IO[str], log: Path | None) -> Iterator[str]:
    """Yields lines once they are in the file, if there is one."""
    with log.open("w", encoding="utf-8", buffering=1) if log else nullcontext() as file:
        for line in lines:
            if file:
                file.write(line)
            yield line


def _events_until(last: str, log: Iterable[str]) -> list[dict[str, Any]]:
    """Reads the log up to an event, and returns all events."""
    seen, events = [], []
    for line in log:
        seen.append(line)
        if line.startswith("{"):  # libraries warn in plain text
            events.append(json.loads(line))
            if events[-1]["event"] == last:
                return events
    raise AssertionError(f"the server ended before {last!r}:\n{''.join(seen)}")


def family_cpu_seconds(process: subprocess.Popen[Any]) -> float:
    """Returns the CPU time so far of a process, its children, and those that have ended."""
    parent = psutil.Process(process.pid)
    seconds = 0.0
    for member in [parent, *parent.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = member.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
    return seconds
