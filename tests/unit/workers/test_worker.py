"""Reports of a worker to its supervisor, which may not read them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alignserve_server.access.shared_usage import new_memory
from alignserve_server.settings import Settings
from alignserve_server.workers.roster import Role
from alignserve_server.workers.worker import Reports


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a socket: the worker's and the supervisor's."""
    worker, supervisor = socket.socketpair()
    with worker, supervisor:
        yield worker, supervisor


def _events(supervisor: socket.socket) -> Iterator[str]:
    for line in supervisor.makefile():
        yield json.loads(line)["event"]


@pytest.mark.timeout(30)
def test_a_supervisor_that_does_not_read_does_not_block_a_worker(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    """Heartbeats are skipped then; events are sent once there is room again, whole and in order."""
    worker, supervisor = ends
    reports = Reports(worker)
    for _ in range(100_000):
        reports.beat()

    reports.announce("ready", lanes=1)
    events = _events(supervisor)
    beats = 0
    while (event := next(events)) == "beat":
        beats += 1
        reports.beat()

    assert event == "ready"
    assert 0 < beats < 100_000


def test_reports_to_a_dead_supervisor_do_not_fail(ends: tuple[socket.socket, socket.socket]) -> None:
    """The worker drains then, and must be able to finish."""
    worker, supervisor = ends
    reports = Reports(worker)
    supervisor.close()

    reports.announce("ready")
    reports.beat()


_WORKER_THAT_CANNOT_CAPTURE = """
from alignserve_server.model.encoder import CaptureFailed
from alignserve_server.serving import loading
from alignserve_server.workers.worker import main

def load_encoder(settings, worker):
    raise CaptureFailed("operation not permitted when stream is capturing")

loading.load_encoder = load_encoder
main()
"""


@pytest.mark.parametrize("role", [pytest.param(Role.WHOLE, marks=pytest.mark.long), Role.DEVICE])
def test_a_worker_that_cannot_capture_graphs_starts_again_without_them(
    ends: tuple[socket.socket, socket.socket], role: Role, tmp_path: Path
) -> None:
    """It stays the same process, with the same connection to its supervisor."""
    worker, supervisor = ends
    stacks, usages = os.memfd_create("stacks"), new_memory(1)
    settings = Settings(checkpoint="fake", listen="127.0.0.1:0", metrics_listen=None)
    spec = {
        "worker": 0,
        "role": role.value,
        "group": 0,
        "usages": {"descriptor": usages, "process": 0, "processes": 1},
        "socket": str(tmp_path / "device"),
        "listens_first": False,
        "settings": settings.model_dump(mode="json"),
        "beat_seconds": 0,
        "stacks_descriptor": stacks,
    }
    supervisor.sendall(f"{json.dumps(spec)}\n".encode())

    process = subprocess.Popen(
        [sys.executable, "-c", _WORKER_THAT_CANNOT_CAPTURE], stdin=worker.fileno(), pass_fds=[stacks, usages]
    )
    with process, supervisor.makefile() as lines:
        worker.close()
        ready = next(event for event in map(json.loads, lines) if event["event"] == "ready")
        process.terminate()

    assert ready["runtime"] == "fake"
    assert process.returncode == 0
    os.close(stacks)
    os.close(usages)
