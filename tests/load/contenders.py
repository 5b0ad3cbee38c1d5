"""The servers to compare: alignserve, a plain server and servers that people install."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from alignserve import Client
from alignserve._bench.load import ClosedLoop, Load
from alignserve._bench.recorder import Measurement
from alignserve._bench.runner import RunLength
from alignserve_server.model.checkpoint import resolve_checkpoint

from tests.load.http_route import http_calls
from tests.load.inputs import MODALITIES, grpc_calls
from tests.load.measuring import grpc_round, http_round
from tests.processes import ROOT, free_port, server_process

ALIGNSERVE, ALIGNSERVE_TORCH, PLAIN, MOSEC = "alignserve", "alignserve, torch", "plain grpc.aio", "mosec"
BFLOAT16 = ("--dtype", "bfloat16")

_READY_SECONDS = 120.0
_STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    process: subprocess.Popen[Any]
    measure: Callable[[str, Load, RunLength], Measurement]  # with calls of one item of a modality


@dataclass(frozen=True)
class Contender:
    """A server that can be started.

    Attributes:
        name: Name in the tables.
        start: Runs the server.
        package: Package that must be installed, or `None`.
    """

    name: str
    start: Callable[[], AbstractContextManager[Running]]
    package: str | None = None

    @property
    def is_installed(self) -> bool:
        """Whether this machine can run the server."""
        return self.package is None or find_spec(self.package) is not None


def contenders(checkpoint: str) -> list[Contender]:
    """Returns the contenders, except for data types that this processor does not support."""
    folder = str(resolve_checkpoint(checkpoint).folder)
    ours = ("--checkpoint", checkpoint)
    bfloat16 = Contender("alignserve, bfloat16", partial(_alignserve, (*ours, *BFLOAT16)))
    return [
        Contender(ALIGNSERVE, partial(_alignserve, ours)),
        *([bfloat16] if has_bfloat16() else []),
        Contender(ALIGNSERVE_TORCH, partial(_alignserve, (*ours, "--runtime", "torch"))),
        Contender(PLAIN, partial(_plain, folder)),
        Contender(MOSEC, partial(_http, "mosec_server", folder, as_json=False), "mosec"),
        Contender("LitServe", partial(_http, "litserve_server", folder, as_json=True), "litserve"),
        Contender("Ray Serve", partial(_http, "ray_server", folder, as_json=False), "ray"),
    ]


def has_bfloat16() -> bool:
    """Returns whether the processor supports bfloat16."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "_bf16" in cpuinfo.read_text()


@contextmanager
def python_server(module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a server of `tests.load.peers`; prints its output if it ended by itself."""
    command = [sys.executable, "-m", f"tests.load.peers.{module}", *arguments]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is not None:
                log.seek(0)
                sys.stderr.buffer.write(log.read())
            _end(process)


@contextmanager
def _alignserve(flags: Sequence[str]) -> Iterator[Running]:
    with server_process(*flags) as server:
        yield Running(server.process, partial(_grpc_round, server.address))


@contextmanager
def _plain(folder: str) -> Iterator[Running]:
    port = free_port()
    with python_server("plain_server", folder, str(port)) as process:
        address = f"127.0.0.1:{port}"
        with Client(address, wait_for_ready=True, timeout_seconds=_READY_SECONDS) as client:
            client.embed_text("ready?")
        yield Running(process, partial(_grpc_round, address))


@contextmanager
def _http(module: str, folder: str, *, as_json: bool) -> Iterator[Running]:
    port = free_port()
    with python_server(module, folder, str(port)) as process:
        server = Running(process, partial(_http_round, port, as_json))
        for modality in MODALITIES:
            _wait_until_ready(server, modality)
        yield server


def _grpc_round(address: str, modality: str, load: Load, run_length: RunLength) -> Measurement:
    return grpc_round(address, grpc_calls(modality), load, run_length)


def _http_round(port: int, as_json: bool, modality: str, load: Load, run_length: RunLength) -> Measurement:
    return http_round(port, http_calls(modality, as_json=as_json), load, run_length)


def _wait_until_ready(server: Running, modality: str) -> None:
    one_call = RunLength(_READY_SECONDS, max_requests=1, timeout_seconds=_READY_SECONDS)
    end = time.monotonic() + _READY_SECONDS
    while server.measure(modality, ClosedLoop(1), one_call).failed:
        if time.monotonic() > end or server.process.poll() is not None:
            raise SystemExit("a peer did not become ready")
        time.sleep(0.5)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stops a server and its children: some outlive their parent, and Ray's leave its process group."""
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
