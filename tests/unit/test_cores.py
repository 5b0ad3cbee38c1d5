"""The cores of a process, and their division among workers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from alignserve_server import cores
from alignserve_server.cores import cpu_count, share, take_share


@pytest.fixture(autouse=True)
def _four_free_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(cores, "_CGROUP_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(cores, "_TOPOLOGY", f"{tmp_path}/cpu{{}}")
    monkeypatch.delenv("PYTHON_CPU_COUNT", raising=False)


@pytest.mark.parametrize(
    ("quota", "count"),
    [("max 100000", 4), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("800000 100000", 4)],
)
def test_a_quota_limits_the_count(tmp_path: Path, quota: str, count: int) -> None:
    """Part of a core counts as one, and more than there are as what there is."""
    (tmp_path / "cpu.max").write_text(quota)

    assert cpu_count() == count


@pytest.mark.parametrize(("value", "count"), [("3", 3), ("9", 4), ("0", 1), ("default", 4)])
def test_the_environment_lowers_the_count(monkeypatch: pytest.MonkeyPatch, value: str, count: int) -> None:
    """PYTHON_CPU_COUNT holds here as in Python itself, but cannot promise cores that are not there."""
    monkeypatch.setenv("PYTHON_CPU_COUNT", value)

    assert cpu_count() == count


@pytest.mark.parametrize(
    ("number", "workers", "shares"),
    [
        (4, 1, [[0, 1, 2, 3]]),
        (4, 2, [[0, 1], [2, 3]]),
        (5, 2, [[0, 1], [2, 3, 4]]),
        (3, 3, [[0], [1], [2]]),
        (2, 3, [[0, 1], [0, 1], [0, 1]]),
    ],
)
def test_shares_are_disjoint_while_there_are_enough_cores(
    number: int, workers: int, shares: list[list[int]]
) -> None:
    """Every core is used; with fewer cores than workers all use all."""
    assert [list(share(range(number), worker, workers)) for worker in range(workers)] == shares


@pytest.mark.parametrize(("quota", "count"), [("max 100000", 2), ("200000 100000", 1), ("300000 100000", 2)])
def test_a_share_counts_its_cores_and_its_part_of_the_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, count: int
) -> None:
    """A worker of two on four cores uses two at the most, and fewer where the quota for all is less."""
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setenv("PYTHON_CPU_COUNT", "4")  # and so restored afterwards
    held = {0, 1, 2, 3}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: held)
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, given: held.intersection_update(given))

    take_share(1, 2)

    assert (held, cpu_count()) == ({2, 3}, count)
