"""Several server processes behind one port, with one page of metrics."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

from tests.integration.open_inference import ask, infer, texts
from tests.integration.serving import (
    Page,
    ServerProcess,
    connect,
    metrics_page,
    server_process,
    text_request,
    until,
)


@dataclass
class Workers:
    """A server with two workers that is ready."""

    server: ServerProcess
    metrics_port: int
    pids: list[int]

    async def page(self) -> Page:
        """Returns /metrics, summed by name and worker."""
        return await metrics_page(self.metrics_port)

    async def accepted(self) -> list[float]:
        """Returns the items that each worker has accepted; 0 for one that is down."""
        page = await self.page()
        return [page.get(("alignserve_items_accepted_total", worker), 0.0) for worker in ("0", "1")]

    async def connection_to(self, worker: int) -> grpc.aio.Channel:
        """Reconnects until that worker answers."""
        while True:
            channel = connect(self.server.port)
            before = (await self.accepted())[worker]
            await embed(channel)
            if (await self.accepted())[worker] == before + 1:
                return channel
            await channel.close()


async def embed(channel: grpc.aio.Channel) -> None:
    """Embeds a text."""
    await pb_grpc.AlignServiceStub(channel).EmbedText(text_request("a text"))


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    """Two workers with the fake encoder."""
    async with two_workers() as workers:
        yield workers


@asynccontextmanager
async def two_workers(*flags: str) -> AsyncIterator[Workers]:
    """Runs a server with two workers for the length of the block."""
    async with server_process("--workers", "2", "--drain-delay-seconds", "0", *flags) as server:
        metrics_port = (await server.event("listening"))["metrics_port"]
        pids = [(await server.event("worker_ready"))["pid"] for _ in range(2)]
        await server.event("ready")
        yield Workers(server, metrics_port, pids)


async def test_every_worker_serves_and_is_counted(workers: Workers) -> None:
    """Connections are spread over the workers, and the page's sum equals the items that callers sent.

    Each worker has a process group of its own, so that Ctrl-C reaches only the supervisor.
    """
    assert {os.getpgid(pid) for pid in workers.pids} == set(workers.pids)
    calls = 0

    async def both_have_served() -> bool:
        nonlocal calls
        async with connect(workers.server.port) as channel:
            await embed(channel)
        calls += 1
        return all(await workers.accepted())

    await until(both_have_served)
    page = await workers.page()

    assert sum(await workers.accepted()) == calls
    assert [page["grpc_server_handled_total", worker] for worker in "01"] == await workers.accepted()
    assert [page["alignserve_worker_up", worker] for worker in "01"] == [1, 1]
    assert [page["alignserve_model_info", worker] for worker in "01"] == [1, 1]


@pytest.mark.long
async def test_workers_serve_the_open_inference_protocol(workers: Workers) -> None:
    """Each answers its own connections, and counts its own requests."""
    for worker in (0, 1):
        async with await workers.connection_to(worker) as channel:
            for _ in range(worker + 1):
                await infer(channel, texts("a cat"))
            statistics = await ask(channel, "ModelStatistics", name="text")

        assert statistics.model_stats[0].inference_stats.success.count == worker + 1


async def test_a_worker_that_is_killed_comes_back(workers: Workers) -> None:
    """The kill is logged and counted, callers of the other worker notice nothing, and then both serve."""
    channel = await workers.connection_to(1)

    os.kill(workers.pids[0], signal.SIGKILL)
    died = await workers.server.event("worker_died")
    await embed(channel)
    ready = await workers.server.event("worker_ready")
    again = await workers.connection_to(0)
    page = await workers.page()

    assert (died["worker"], died["exit_code"]) == (0, -signal.SIGKILL)
    assert ready["worker"] == 0
    assert [page["alignserve_worker_restarts_total", worker] for worker in "01"] == [1, 0]
    await channel.close()
    await again.close()


async def test_new_connections_reach_workers_that_can_serve(workers: Workers) -> None:
    """While a worker is down, no connection reaches it."""
    os.kill(workers.pids[0], signal.SIGKILL)
    await workers.server.event("worker_died")

    for _ in range(20):
        async with connect(workers.server.port) as channel:
            await embed(channel)

    assert (await workers.accepted())[1] > 0


async def test_a_worker_that_hangs_does_not_hide_the_others(workers: Workers) -> None:
    """The page says that it is down, and has the series of the other worker."""
    os.kill(workers.pids[0], signal.SIGSTOP)

    try:
        page = await workers.page()
    finally:
        os.kill(workers.pids[0], signal.SIGCONT)

    assert [page["alignserve_worker_up", worker] for worker in "01"] == [0, 1]
    assert ("alignserve_lanes", "0") not in page
    assert page["alignserve_lanes", "1"] == 1


@dataclass(frozen=True)
class Replaced:
    """The state after worker 0 hung and was replaced."""

    hung: dict[str, Any]
    died: dict[str, Any]
    page: Page


async def replaced(workers: Workers) -> Replaced:
    """Waits until another process serves as worker 0."""
    hung = await workers.server.event("worker_hung")
    died = await workers.server.event("worker_died")
    ready = await workers.server.event("worker_ready")
    assert ready["worker"] == 0
    assert ready["pid"] != workers.pids[0]
    channel = await workers.connection_to(0)
    await channel.close()
    return Replaced(hung, died, await workers.page())


@pytest.fixture
async def impatient() -> AsyncIterator[Workers]:
    """Two workers; one that is silent for two seconds is replaced."""
    async with two_workers("--worker-timeout-seconds", "2") as workers:
        yield workers


@pytest.mark.long
async def test_a_worker_that_is_stopped_is_replaced(impatient: Workers) -> None:
    """Only SIGKILL ends it; it is logged and counted, and callers of the other worker notice nothing."""
    channel = await impatient.connection_to(1)

    os.kill(impatient.pids[0], signal.SIGSTOP)
    outcome = await replaced(impatient)
    await embed(channel)

    assert (outcome.hung["worker"], outcome.hung["pid"]) == (0, impatient.pids[0])
    assert (outcome.died["worker"], outcome.died["exit_code"]) == (0, -signal.SIGKILL)
    assert [outcome.page["alignserve_worker_hangs_total", worker] for worker in "01"] == [1, 0]
    assert [outcome.page["alignserve_worker_restarts_total", worker] for worker in "01"] == [1, 0]
    await channel.close()


_STUCK_AT_A_SIGNAL = """
import signal, threading

def get_stuck(*_):
    threading.Event().wait()

signal.signal(signal.SIGUSR1, get_stuck)
"""


@pytest.mark.long
async def test_a_worker_whose_event_loop_is_blocked_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its other threads may still run and serve its page; the log shows where it was stuck."""
    (tmp_path / "sitecustomize.py").write_text(_STUCK_AT_A_SIGNAL)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    async with two_workers("--worker-timeout-seconds", "2") as workers:
        os.kill(workers.pids[0], signal.SIGUSR1)

        outcome = await replaced(workers)

    assert "get_stuck" in outcome.hung["stacks"]
    assert outcome.page["alignserve_worker_hangs_total", "0"] == 1


@pytest.mark.long
async def test_a_supervisor_that_was_suspended_replaces_no_worker(impatient: Workers) -> None:
    """It is stopped for longer than a worker may be silent; the workers serve throughout."""
    os.kill(impatient.server.process.pid, signal.SIGSTOP)
    end = time.monotonic() + 3.0
    while time.monotonic() < end:
        async with connect(impatient.server.port) as channel:
            await embed(channel)
    os.kill(impatient.server.process.pid, signal.SIGCONT)

    page = await impatient.page()

    assert [page["alignserve_worker_hangs_total", worker] for worker in "01"] == [0, 0]
    assert [page["alignserve_worker_up", worker] for worker in "01"] == [1, 1]


async def test_workers_drain_when_their_supervisor_is_killed(workers: Workers) -> None:
    """No process is left behind, and each worker finishes its drain."""
    workers.server.process.kill()

    for _ in range(2):
        await workers.server.event("stopped")
    await workers.server.wait()  # until the log ends, which every process holds open


@pytest.mark.parametrize(
    ("first", "second"), [("2", "2"), pytest.param("2", "1", marks=pytest.mark.long), ("1", "2")]
)
async def test_a_taken_port_is_refused(first: str, second: str) -> None:
    """Neither kind of server silently shares a port with another."""
    async with server_process("--workers", first) as holder:
        listening = await holder.event("listening")
        address = f"127.0.0.1:{listening['port']}"

        async with server_process("--workers", second, "--listen", address) as other:
            _, log = await other.process.communicate()

    assert other.process.returncode == 1
    assert f"cannot listen on {address}".encode() in log
