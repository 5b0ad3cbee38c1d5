"""A log, page or report that is never read delays neither calls nor shutdown."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.request import urlopen

import grpc
import pytest
import trustme
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

from tests.integration.serving import connect, text_request
from tests.processes import BIN, ROOT, free_port

pytestmark = pytest.mark.hostile

_CALLS = 1500  # each logs a line: the queue holds a thousand, the pipe about two hundred
_EXIT_SECONDS = 60.0  # a bound for a busy machine; a hang would never end


@dataclass(frozen=True)
class Unread:
    """A server whose standard error is a pipe that has not been read since the server was ready."""

    process: subprocess.Popen[bytes]
    port: int
    metrics_port: int

    def page(self) -> str:
        """Returns /metrics."""
        with urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=_EXIT_SECONDS) as response:
            return response.read().decode()

    def dropped(self, labels: str = "") -> int:
        """Returns how many lines were dropped."""
        name = f"alignserve_log_lines_dropped_total{labels} "
        (line,) = (line for line in self.page().splitlines() if line.startswith(name))
        return int(float(line.removeprefix(name)))

    def terminate(self) -> int:
        """Sends SIGTERM, and returns the exit code."""
        self.process.terminate()
        return self.process.wait(_EXIT_SECONDS)


@contextmanager
def unread_server(*flags: str) -> Iterator[Unread]:
    """Runs a server, and stops reading its log once it is ready."""
    command = [
        *(str(BIN / "alignserve-server"), "--checkpoint", "fake", "--log-format", "json"),
        *("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--drain-delay-seconds", "0", *flags),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stderr is not None
        try:
            listening = _event(process.stderr, "listening")
            _event(process.stderr, "ready")
            yield Unread(process, listening["port"], listening["metrics_port"])
        finally:
            process.kill()


def _event(log: IO[bytes], name: str) -> dict[str, Any]:
    for line in log:
        if line.startswith(b"{"):  # gRPC's core writes plain text if so configured
            event: dict[str, Any] = json.loads(line)
            if event["event"] == name:
                return event
    raise AssertionError(f"the server ended before {name!r}")


async def call(channel: grpc.aio.Channel, calls: int = _CALLS) -> None:
    """Embeds the same text in every call, a hundred calls at a time."""
    stub = pb_grpc.AlignServiceStub(channel)
    for _ in range(calls // 100):
        await asyncio.gather(*(stub.EmbedText(text_request("a"), timeout=_EXIT_SECONDS) for _ in range(100)))


async def test_an_unread_log_costs_lines_and_no_calls() -> None:
    """Each call is answered, dropped lines are counted, and SIGTERM still works."""
    with unread_server("--access-log-sample-ratio", "1") as server:
        async with connect(server.port) as channel:
            await call(channel)
        dropped = await asyncio.to_thread(server.dropped)

        code = await asyncio.to_thread(server.terminate)

    assert 0 < dropped < _CALLS
    assert code == 0


async def test_a_reader_that_resumes_learns_how_many_lines_it_missed() -> None:
    """Lines are whole and in order; in place of dropped lines there is one with their number."""
    with unread_server("--access-log-sample-ratio", "1") as server:
        async with connect(server.port) as channel:
            await call(channel)
        server.process.terminate()
        assert server.process.stderr is not None
        events = [json.loads(line) for line in await asyncio.to_thread(server.process.stderr.readlines)]

    gaps = [event["count"] for event in events if event["event"] == "log_lines_dropped"]
    calls = [event for event in events if event["event"] == "call"]
    assert server.process.wait() == 0
    assert gaps
    assert len(calls) < _CALLS <= len(calls) + sum(gaps)  # other lines may have been dropped too
    assert [event["timestamp"] for event in calls] == sorted(event["timestamp"] for event in calls)
    assert events[-1]["event"] == "stopped"


@pytest.mark.long
async def test_workers_with_an_unread_log_serve_and_stop() -> None:
    """They share the pipe with their supervisor; each counts its own lines."""
    with unread_server("--workers", "2", "--access-log-sample-ratio", "1") as server:
        async with connect(server.port) as channel:  # to one of the two workers
            await call(channel)
        dropped = [server.dropped(f'{{worker="{name}"}}') for name in ("0", "1", "supervisor")]

        code = await asyncio.to_thread(server.terminate)

    assert sum(dropped) > 0
    assert code == 0


async def test_a_server_whose_standard_error_is_closed_serves_and_stops() -> None:
    """No connection takes descriptor 2, to which libraries write."""
    port = free_port()
    flags = f"--checkpoint fake --listen 127.0.0.1:{port} --metrics-listen none --drain-delay-seconds 0"
    process = subprocess.Popen(  # noqa: ASYNC220 — does not block
        ["sh", "-c", f"exec {BIN}/alignserve-server {flags} 2>&- >&- <&-"]
    )
    try:
        async with connect(port) as channel:
            stub = pb_grpc.AlignServiceStub(channel)
            request = text_request("a")
            await stub.EmbedText(request, timeout=_EXIT_SECONDS, wait_for_ready=True)
        process.terminate()
        code = await asyncio.to_thread(process.wait, _EXIT_SECONDS)
    finally:
        process.kill()

    assert code == 0


@pytest.fixture
def tls(tmp_path: Path) -> tuple[bytes, list[str]]:
    """The root to trust, and the flags of a server with a certificate."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    issued.private_key_pem.write_to_path(key)
    for blob in issued.cert_chain_pems:
        blob.write_to_path(certificate, append=True)
    return authority.cert_pem.bytes(), ["--tls-certificate", str(certificate), "--tls-key", str(key)]


@pytest.mark.parametrize("verbosity", [None, "info"])
async def test_failed_handshakes_do_not_fill_the_log(
    tls: tuple[bytes, list[str]], monkeypatch: pytest.MonkeyPatch, verbosity: str | None
) -> None:
    """gRPC's core reports them from serving threads; it does so only on request, and never blocks them."""
    if verbosity is not None:
        monkeypatch.setenv("GRPC_VERBOSITY", verbosity)
    root, flags = tls
    with unread_server(*flags) as server:
        await asyncio.to_thread(_fail_handshakes, server.port, 500)
        credentials = grpc.ssl_channel_credentials(root)
        async with grpc.aio.secure_channel(f"localhost:{server.port}", credentials) as channel:
            await call(channel, 100)

        code = await asyncio.to_thread(server.terminate)

    assert code == 0


def _fail_handshakes(port: int, count: int) -> None:
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port), timeout=_EXIT_SECONDS) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while connection.recv(4096):
                pass


async def test_stuck_scrapers_do_not_block_others() -> None:
    """Hundreds of them take few threads; other scrapes and calls are answered, and SIGTERM works."""
    with unread_server() as server, ExitStack() as stack:
        threads = _threads(server.process.pid)
        for _ in range(200):
            address = ("127.0.0.1", server.metrics_port)
            stack.enter_context(socket.create_connection(address)).sendall(b"GET /met")

        page = await asyncio.to_thread(server.page)
        more_threads = _threads(server.process.pid) - threads
        async with connect(server.port) as channel:
            await call(channel, 100)
        code = await asyncio.to_thread(server.terminate)

    assert "alignserve_model_info" in page
    assert more_threads < 50
    assert code == 0


def _threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208


@pytest.mark.long
async def test_a_suspended_supervisor_delays_no_worker() -> None:
    """Their reports are not read, but the workers keep serving."""
    with unread_server("--workers", "2", "--worker-timeout-seconds", "1") as server:
        os.kill(server.process.pid, signal.SIGSTOP)
        for _ in range(4):
            async with connect(server.port) as channel:
                await call(channel, 100)
        os.kill(server.process.pid, signal.SIGCONT)
        code = await asyncio.to_thread(server.terminate)

    assert code == 0
