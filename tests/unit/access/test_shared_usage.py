"""Quotas that several processes count together."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from alignserve_server.access.shared_usage import SharedUsages, new_memory
from alignserve_server.access.usage import OwnUsage, Usage


@pytest.fixture
def memory() -> Iterator[int]:
    """The memory that two processes share."""
    descriptor = new_memory(2)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def both(memory: int) -> list[Usage]:
    """A key's usage as each of two processes counts it."""
    return [SharedUsages(memory, process, 2)["search"] for process in range(2)]


def test_calls_in_progress_are_limited_in_total(both: list[Usage]) -> None:
    """Whichever process they are in; the end of one lets in another."""
    one, other = both

    begun = [one.begin(2), other.begin(2), one.begin(2), other.begin(2)]
    one.end()
    again = [other.begin(2), one.begin(2)]

    assert begun == [True, True, False, False]
    assert again == [True, False]


def test_calls_without_a_limit_count_for_those_with_one(both: list[Usage]) -> None:
    """The limit may be set while calls are in progress."""
    one, other = both

    one.begin(None)

    assert not other.begin(1)


def test_a_rate_is_paid_by_all_requests(both: list[Usage]) -> None:
    """As in one process: a refund takes back a charge, and the past gives no credit."""
    one, other = both
    alone = OwnUsage()

    shared_times = [one.pay(10.0, 0.5), other.pay(10.0, 0.5), one.pay(20.0, 0.5)]
    other.refund(0.5)
    shared_times.append(one.pay(20.0, 0.25))
    times = [alone.pay(10.0, 0.5), alone.pay(10.0, 0.5), alone.pay(20.0, 0.5)]
    alone.refund(0.5)
    times.append(alone.pay(20.0, 0.25))

    assert shared_times == times == [10.5, 11.0, 20.5, 20.25]


def test_keys_do_not_share(memory: int) -> None:
    """Each has a place of its own."""
    usages = SharedUsages(memory, 0, 2)

    for number in range(100):
        assert usages[f"key-{number}"].begin(1)


def test_a_key_beyond_the_last_place_is_counted_by_each_process(memory: int) -> None:
    """There are places for 2,048 keys."""
    usages = SharedUsages(memory, 0, 2)

    kinds = [type(usages[f"key-{number}"]) for number in range(2049)]

    assert kinds.count(OwnUsage) == 1


def test_calls_of_a_process_that_was_killed_can_be_dropped(memory: int, both: list[Usage]) -> None:
    """The other process's calls stay, and so does what the rate has paid."""
    one, other = both
    one.begin(None)
    other.begin(None)
    one.pay(10.0, 1.0)

    SharedUsages(memory, 0, 2).drop_calls()

    assert not other.begin(1)
    assert other.begin(2)
    assert other.pay(10.0, 1.0) == 12.0


_START = """
import fcntl, os, signal, sys, time
from alignserve_server.access.shared_usage import SharedUsages
usages = SharedUsages(int(sys.argv[1]), int(sys.argv[2]), 2)
usage = usages["search"]
"""

_PAY = """
for _ in range(5000):
    usage.pay(0.0, 1.0)
    assert usage.begin(2)
    usage.end()
"""

_STOP_IN_A_CHARGE = """
usages._set_paid_until = lambda *_: os.kill(os.getpid(), signal.SIGSTOP)
usage.pay(0.0, 1.0)
"""


def _process(memory: int, number: int, code: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _START + code, str(memory), str(number)]
    return subprocess.Popen(command, pass_fds=[memory])


def test_no_charge_is_lost_between_processes(memory: int) -> None:
    """They charge at the same time."""
    processes = [_process(memory, number, _PAY) for number in range(2)]
    codes = [process.wait() for process in processes]

    assert codes == [0, 0]
    assert SharedUsages(memory, 0, 2)["search"].pay(0.0, 1.0) == 10_001.0


def test_a_process_that_stops_while_it_charges_stops_no_other(memory: int) -> None:
    """Whatever it charges, and to whichever key: the others go on without it."""
    stopped = _process(memory, 1, _STOP_IN_A_CHARGE)
    try:
        os.waitid(os.P_PID, stopped.pid, os.WSTOPPED)

        usages = SharedUsages(memory, 0, 2)

        assert usages["search"].pay(10.0, 1.0) == 11.0
        assert usages["search"].begin(1)
        assert usages["another"].begin(1)
    finally:
        stopped.kill()
        stopped.wait()
