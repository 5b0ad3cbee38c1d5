"""The servers to compare: alignserve, a plain server and servers that people install."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from alignserve._bench.load import ClosedLoop, Load
from alignserve._bench.recorder import Measurement
from alignserve._bench.routes import RequestFailed
from alignserve._bench.runner import RunLength
from alignserve._bench.workload import UnaryRequest
from alignserve.errors import UnavailableError
from alignserve_server.model.checkpoint import resolve_checkpoint
from numpy.typing import NDArray

from tests.load import dialects
from tests.load.dialects import Dialect
from tests.load.inputs import MODALITIES, grpc_calls
from tests.load.measuring import grpc_round, http_answer, http_round
from tests.load.peers import environments
from tests.processes import ROOT, free_port, server_process

ALIGNSERVE, ALIGNSERVE_TORCH, PLAIN, MOSEC = "alignserve", "alignserve, torch", "plain grpc.aio", "mosec"
BFLOAT16 = ("--dtype", "bfloat16")

_READY_SECONDS = 600.0
_TRY_SECONDS = 10.0
_STOP_SECONDS = 10.0
_TEI = "text-embeddings-router"
# Caches go to a temporary folder, nothing is downloaded and nothing is reported.
_PRIVATE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "BENTOML_DO_NOT_TRACK": "True"}


class NotReady(Exception):
    """A server ended by itself, or did not answer in time."""


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    process: subprocess.Popen[Any]
    measure: Callable[[str, Load, RunLength], Measurement]  # with calls of one item of a modality
    embed: Callable[
        [str, bytes], NDArray[np.float32]
    ]  # an item of a modality: (dimension,); raises `NotReady`


@dataclass(frozen=True)
class Contender:
    """A server that can be started.

    Attributes:
        name: Name in the tables.
        start: Runs the server; raises `NotReady`.
        absence: Why it is not installed, or `None` if it is.
        modalities: What it embeds.
    """

    name: str
    start: Callable[[], AbstractContextManager[Running]]
    absence: str | None = None
    modalities: Sequence[str] = MODALITIES


def contenders(checkpoint: str) -> list[Contender]:
    """Returns alignserve, without data types that this processor does not support, and a plain server."""
    folder = str(resolve_checkpoint(checkpoint).folder)
    ours = ("--checkpoint", checkpoint)
    bfloat16 = Contender("alignserve, bfloat16", partial(_alignserve, (*ours, *BFLOAT16)))
    return [
        Contender(ALIGNSERVE, partial(_alignserve, ours)),
        *([bfloat16] if has_bfloat16() else []),
        Contender(ALIGNSERVE_TORCH, partial(_alignserve, (*ours, "--runtime", "torch"))),
        Contender(PLAIN, partial(_plain, folder)),
    ]


def peers(checkpoint: str) -> list[Contender]:
    """Returns the servers that people install."""
    folder = str(resolve_checkpoint(checkpoint).folder)
    absence = environments.absence
    no_tei = None if shutil.which(_TEI) else f"no {_TEI} in PATH"
    return [
        Contender(MOSEC, partial(_http, "mosec", folder, dialects.RAW), absence("mosec")),
        Contender("LitServe", partial(_http, "litserve", folder, dialects.LITSERVE), absence("litserve")),
        Contender("Ray Serve", partial(_http, "ray", folder, dialects.RAW), absence("ray")),
        Contender("BentoML", partial(_http, "bentoml", folder, dialects.BENTOML), absence("bentoml")),
        Contender("Triton", partial(_triton, folder), absence("triton")),
        Contender("infinity", partial(_infinity, folder), absence("infinity")),
        Contender("infinity, ONNX", partial(_infinity_onnx, folder), absence("infinity"), ["text"]),
        Contender("TEI, ONNX", partial(_tei, folder), absence("infinity") or no_tei, ["text"]),
    ]


def has_bfloat16() -> bool:
    """Returns whether the processor supports bfloat16."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "_bf16" in cpuinfo.read_text()


@contextmanager
def python_server(
    module: str, *arguments: str, python: str = sys.executable
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a server of `tests.load.peers`; prints its output if it ended by itself."""
    with _program(python, "-m", f"tests.load.peers.{module}", *arguments) as process:
        yield process


@contextmanager
def _program(*command: str, cwd: Path = ROOT) -> Iterator[subprocess.Popen[bytes]]:
    with (
        tempfile.TemporaryDirectory(prefix="peer-") as home,
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            cwd=cwd,
            start_new_session=True,
            env={**os.environ, **_PRIVATE, "HF_HOME": home, "BENTOML_HOME": home},
        ) as process,
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
        yield _grpc_running(server.process, server.address, grpc_calls, dialects.ALIGN)


@contextmanager
def _plain(folder: str) -> Iterator[Running]:
    port = free_port()
    with python_server("plain_server", folder, str(port)) as process:
        server = _grpc_running(process, f"127.0.0.1:{port}", grpc_calls, dialects.ALIGN)
        _wait_until_ready(server, MODALITIES)
        yield server


@contextmanager
def _http(name: str, folder: str, dialect: Dialect) -> Iterator[Running]:
    with _peer(name, folder) as (process, port):
        yield _http_running(process, port, dialect, MODALITIES)


@contextmanager
def _triton(folder: str) -> Iterator[Running]:
    with _peer("triton", folder) as (process, port):
        server = _grpc_running(process, f"127.0.0.1:{port}", dialects.TRITON.calls, dialects.TRITON)
        _wait_until_ready(server, MODALITIES)
        yield server


@contextmanager
def _peer(name: str, folder: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Runs a server in its environment; returns its port too."""
    port = free_port()
    python = environments.program("python", of=name)
    with python_server(f"{name}_server", folder, str(port), python=python) as process:
        yield process, port


@contextmanager
def _infinity(
    folder: str, *flags: str, modalities: Sequence[str] = MODALITIES, cwd: Path = ROOT
) -> Iterator[Running]:
    port = free_port()
    command = (environments.program("infinity_emb", of="infinity"), "v2", "--model-id", folder)
    rest = ("--served-model-name", "align", "--device", "cpu", "--host", "127.0.0.1", "--port", str(port))
    with _program(*command, *rest, *flags, cwd=cwd) as process:
        yield _http_running(process, port, dialects.OPENAI, modalities)


@contextmanager
def _infinity_onnx(checkpoint: str) -> Iterator[Running]:
    flags = ("--engine", "optimum", "--pooling-method", "cls")
    with (
        _text_tower(checkpoint) as folder,
        # it finds a local ONNX file only in the working folder
        _infinity(".", *flags, modalities=["text"], cwd=Path(folder)) as server,
    ):
        yield server


@contextmanager
def _tei(checkpoint: str) -> Iterator[Running]:
    port = free_port()
    address = ("--hostname", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port()))
    with (
        _text_tower(checkpoint) as folder,
        _program(_TEI, "--model-id", folder, "--pooling", "cls", *address) as process,
    ):
        yield _http_running(process, port, dialects.OPENAI, ["text"])


@contextmanager
def _text_tower(checkpoint: str) -> Iterator[str]:
    python = environments.program("python", of="infinity")  # it has the package onnx
    with tempfile.TemporaryDirectory(prefix="text-tower-") as folder:
        command = (python, "-m", "tests.load.peers.text_tower", checkpoint, folder)
        done = subprocess.run(command, cwd=ROOT, check=False, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            last_line = done.stderr.strip().rpartition("\n")[2]
            raise NotReady(f"its model cannot be written: {last_line}")
        yield folder


def _grpc_running(
    process: subprocess.Popen[Any],
    address: str,
    calls: Callable[[str], Iterator[UnaryRequest]],
    dialect: Dialect,
) -> Running:
    def measure(modality: str, load: Load, run_length: RunLength) -> Measurement:
        return grpc_round(address, calls(modality), load, run_length)

    def embed(modality: str, body: bytes) -> NDArray[np.float32]:
        call = dialect.request(modality, body)
        with grpc.insecure_channel(address) as channel:
            method: Any = channel.unary_unary(call.method)  # Any: of bytes, for which the stubs have no type
            try:
                response = method(call.request)
            except grpc.RpcError as error:
                raise NotReady(f"no answer to one {modality}: {error.details()}") from error
            return dialect.embedding(response)

    return Running(process, measure, embed)


def _http_running(
    process: subprocess.Popen[Any], port: int, dialect: Dialect, modalities: Sequence[str]
) -> Running:
    def measure(modality: str, load: Load, run_length: RunLength) -> Measurement:
        return http_round(port, dialect.calls(modality), load, run_length)

    def embed(modality: str, body: bytes) -> NDArray[np.float32]:
        try:
            response = http_answer(port, dialect.request(modality, body), _READY_SECONDS)
        except RequestFailed as error:
            reason = error.failure.message or error.failure.reason
            raise NotReady(f"no answer to one {modality}: {reason}") from error
        return dialect.embedding(response)

    server = Running(process, measure, embed)
    _wait_until_ready(server, modalities)
    return server


def _wait_until_ready(server: Running, modalities: Sequence[str]) -> None:
    end = time.monotonic() + _READY_SECONDS
    for modality in modalities:
        while not _answers(server, modality):
            if time.monotonic() > end or server.process.poll() is not None:
                raise NotReady(f"no answer to one {modality}")
            time.sleep(0.5)


def _answers(server: Running, modality: str) -> bool:
    one_call = RunLength(_TRY_SECONDS, max_requests=1, timeout_seconds=_TRY_SECONDS)
    try:
        return not server.measure(modality, ClosedLoop(1), one_call).failed
    except UnavailableError:
        return False


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
