"""Installs and builds what a column needs: Debian packages, then the column's own commands.

`Missing` tools and packages skip a column; `BuildFailed` fails it. Commands that fail because of the network
run again.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

ATTEMPTS = 4
_WAIT_SECONDS = (5.0, 15.0, 30.0)
_NETWORK = re.compile(
    r"timed? ?out|connection (reset|refused|closed|aborted)|temporary failure|could(n't| not) resolve"
    r"|unexpected EOF|network (error|is unreachable)|EAI_AGAIN|ECONNRESET|ETIMEDOUT|TLS handshake"
    r"|\b(429|50[0234])\b.{0,40}(error|too many|gateway|unavailable)|failed to fetch|spurious network error"
    r"|hash sum mismatch|IncompleteRead|could not transfer artifact",
    re.IGNORECASE,
)
_TAIL = 30  # lines of a failed command that are shown
_apt = threading.Lock()  # apt-get runs once at a time
_APT_SECONDS = 600.0


class Missing(Exception):
    """The machine lacks a tool or package; the message names it."""


class BuildFailed(Exception):
    """A command failed; the message has the end of its output."""


def require(tools: Iterable[str]) -> None:
    """Raises `Missing` if a command is not on PATH."""
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        raise Missing(f"{', '.join(missing)} not on PATH")


def install(packages: Sequence[str], say: Callable[[str], None]) -> None:
    """Installs Debian packages that are not installed yet.

    Raises:
        Missing: This is not Debian, or not root, or a package cannot be installed.
    """
    with _apt:
        absent = [package for package in packages if not _is_installed(package)]
        if not absent:
            return
        if shutil.which("apt-get") is None or os.geteuid() != 0:
            raise Missing(f"Debian packages {', '.join(absent)}; only root can install them with apt-get")
        say(f"installs {', '.join(absent)} with apt-get")
        environment = {"DEBIAN_FRONTEND": "noninteractive"}
        command = ["apt-get", "install", "-y", "--no-install-recommends", *absent]
        try:
            run(["apt-get", "update"], Path("/"), _APT_SECONDS, environment)
            run(command, Path("/"), _APT_SECONDS, environment)
        except BuildFailed as error:
            raise Missing(f"Debian packages {', '.join(absent)}: {error}") from error


def build(
    commands: Iterable[Sequence[str]], folder: Path, seconds: float, environment: Mapping[str, str]
) -> None:
    """Runs commands in order, with a time limit for all of them together.

    Raises:
        BuildFailed: One failed, or they took too long.
    """
    deadline = time.monotonic() + seconds
    for command in commands:
        run(command, folder, deadline - time.monotonic(), environment)


def run(command: Sequence[str], folder: Path, seconds: float, environment: Mapping[str, str]) -> str:
    """Runs one command, again if the network failed; returns its output.

    Raises:
        BuildFailed: It failed or took too long.
    """
    deadline = time.monotonic() + seconds
    for attempt in range(ATTEMPTS):
        code, output = _finished(command, folder, deadline - time.monotonic(), environment)
        if code == 0:
            return output
        if code is None:
            raise BuildFailed(f"{_name(command)} took more than {seconds:.0f} s{_end(output)}")
        if attempt == ATTEMPTS - 1 or not _NETWORK.search(output):
            raise BuildFailed(f"{_name(command)} ended with {code}{_end(output)}")
        time.sleep(min(_WAIT_SECONDS[attempt], max(0.0, deadline - time.monotonic())))
    raise AssertionError  # not reached


def _finished(
    command: Sequence[str], folder: Path, seconds: float, environment: Mapping[str, str]
) -> tuple[int | None, str]:
    """Returns exit code and output; no code if it was killed for taking too long."""
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return 127, str(error)
    try:
        output, _ = process.communicate(timeout=max(0.0, seconds))
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]
    return process.returncode, output


def _is_installed(package: str) -> bool:
    if shutil.which("dpkg-query") is None:
        return False
    found = subprocess.run(
        ["dpkg-query", "-W", "-f=${Status}", package], capture_output=True, text=True, check=False
    )
    return found.stdout == "install ok installed"


def _name(command: Sequence[str]) -> str:
    return " ".join(command[:4]) + (" …" if len(command) > 4 else "")


def _end(output: str) -> str:
    lines = output.strip().splitlines()[-_TAIL:]
    return "".join(f"\n    {line}" for line in lines)
