"""Reports of a worker to its supervisor, which may not read them."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
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
