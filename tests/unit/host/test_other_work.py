"""How much of the machine other processes take."""

from __future__ import annotations

from pathlib import Path

import pytest
from alignserve_server.host.other_work import OtherWork


def test_what_the_process_itself_used_does_not_count() -> None:
    """In 10 s the machine did 15 s of work, of which 5 s were this process's."""
    machine, own, clock = iter([100.0, 115.0]), iter([20.0, 25.0]), iter([0.0, 10.0])

    others = OtherWork(lambda: next(machine), lambda: next(own), lambda: next(clock))

    assert others.cores() == pytest.approx(1.0)


def test_it_is_unknown_where_the_system_does_not_tell() -> None:
    """As on macOS."""
    assert OtherWork(lambda: None).cores() is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux")
def test_linux_tells() -> None:
    """In its own units, which give no negative time."""
    cores = OtherWork().cores()

    assert cores is not None
    assert cores >= 0
