"""What a worker tells its supervisor, who may not read it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from alignserve_server.workers.worker import Reports


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The worker's end of the line and the supervisor's."""
    worker, supervisor = socket.socketpair()
    with worker, supervisor:
        yield worker, supervisor


def _events(supervisor: socket.socket) -> Iterator[str]:
    for line in supervisor.makefile():
        yield json.loads(line)["event"]


@pytest.mark.timeout(30)
def test_a_supervisor_that_does_not_read_holds_up_nothing(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    """Beats are left out then; an event comes when there is room again, whole and in its turn."""
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


def test_a_supervisor_that_is_gone_is_not_missed(ends: tuple[socket.socket, socket.socket]) -> None:
    """The worker drains then, and goes on with that."""
    worker, supervisor = ends
    reports = Reports(worker)
    supervisor.close()

    reports.announce("ready")
    reports.beat()
