"""Quotas that several processes count together."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from alignserve_server.access.shared_usage import SharedUsages
from alignserve_server.access.usage import OwnUsage, Usage


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file that two processes share."""
    return tmp_path / "usages"


@pytest.fixture
def both(path: Path) -> list[Usage]:
    """A key's usage as each of two processes counts it."""
    return [SharedUsages(path, process, 2)["search"] for process in range(2)]


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


def test_keys_do_not_share(path: Path) -> None:
    """Each has a place of its own."""
    usages = SharedUsages(path, 0, 1)

    for number in range(100):
        assert usages[f"key-{number}"].begin(1)


def test_a_full_disk_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a signal, which ends a process that writes to a map for which the disk has no room."""

    def no_room(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", no_room)

    with pytest.raises(OSError, match="No space left"):
        SharedUsages(path, 0, 2)


def test_a_key_beyond_the_last_place_is_counted_by_each_process(path: Path) -> None:
    """There are places for 2,048 keys."""
    usages = SharedUsages(path, 0, 1)

    kinds = [type(usages[f"key-{number}"]) for number in range(2049)]

    assert kinds.count(OwnUsage) == 1


def test_calls_of_a_process_that_was_killed_end_with_its_successor(path: Path, both: list[Usage]) -> None:
    """The other process's calls stay, and so does what the rate has paid."""
    one, other = both
    one.begin(None)
    other.begin(None)
    one.pay(10.0, 1.0)

    successor = SharedUsages(path, 0, 2)["search"]

    assert not successor.begin(1)
    assert successor.begin(2)
    assert other.pay(10.0, 1.0) == 12.0


_PAY = """
import sys
from pathlib import Path
from alignserve_server.access.shared_usage import SharedUsages
usage = SharedUsages(Path(sys.argv[1]), int(sys.argv[2]), 2)["search"]
for _ in range(5000):
    usage.pay(0.0, 1.0)
    assert usage.begin(2)
    usage.end()
"""


def test_no_charge_is_lost_between_processes(path: Path) -> None:
    """They charge at the same time."""
    processes = [subprocess.Popen([sys.executable, "-c", _PAY, str(path), str(n)]) for n in range(2)]
    codes = [process.wait() for process in processes]

    assert codes == [0, 0]
    assert SharedUsages(path, 0, 2)["search"].pay(0.0, 1.0) == 10_001.0
