"""CPU usage of other processes during a measurement."""

from __future__ import annotations

from pathlib import Path

import pytest
from alignserve_server.host.other_work import OtherWork


def test_the_usage_of_the_process_itself_does_not_count() -> None:
    """In 10 s the machine used 15 s of CPU time, 5 s of it in this process."""
    machine, own, clock = iter([100.0, 115.0]), iter([20.0, 25.0]), iter([0.0, 10.0])

    others = OtherWork(lambda: next(machine), lambda: next(own), lambda: next(clock))

    assert others.cores() == pytest.approx(1.0)


def test_it_is_unknown_if_the_system_does_not_report_it() -> None:
    """This is the case on macOS."""
    assert OtherWork(lambda: None).cores() is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux")
def test_linux_reports_it() -> None:
    """The difference between Linux's units and Python's never makes it negative."""
    cores = OtherWork().cores()

    assert cores is not None
    assert cores >= 0
