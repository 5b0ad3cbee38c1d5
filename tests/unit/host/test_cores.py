"""The cores of a process, and how workers divide them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from alignserve_server.host import cores
from alignserve_server.host.cores import cpu_count, pin_to_share, share
from alignserve_server.host.cpu_quota import cpu_quotas

V2_MOUNT = "30 23 0:26 {top} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "33 32 0:29 {top} /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:12 - cgroup cgroup rw,cpu,cpuacct"


def _machine(root: Path, groups: str, mounts: str, quotas: dict[str, str]) -> Path:
    """Writes /proc and /sys as the kernel would show them to a process."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text(f"22 1 8:1 / / rw - ext4 /dev/sda rw\n{mounts}\n")
    for name, text in quotas.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def _four_free_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(cores, "_TOPOLOGY", f"{tmp_path}/cpu{{}}")
    monkeypatch.delenv("PYTHON_CPU_COUNT", raising=False)


@pytest.mark.parametrize(
    ("quota", "count"),
    [("max 100000", 4), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("800000 100000", 4)],
)
def test_a_quota_limits_the_count(tmp_path: Path, quota: str, count: int) -> None:
    """A fraction of a core counts as one core; a quota above the number of cores has no effect."""
    _machine(tmp_path, "0::/", V2_MOUNT.format(top="/"), {"cpu.max": quota})

    assert cpu_count(tmp_path) == count


@pytest.mark.parametrize(
    ("groups", "mounts", "quotas", "count"),
    [
        pytest.param(
            "0::/system.slice/align.service",
            V2_MOUNT.format(top="/"),
            {"system.slice/align.service/cpu.max": "150000 100000", "system.slice/cpu.max": "max 100000"},
            2,
            id="unit of systemd",
        ),
        pytest.param(
            "0::/system.slice/align.service",
            V2_MOUNT.format(top="/"),
            {"system.slice/align.service/cpu.max": "300000 100000", "system.slice/cpu.max": "100000 100000"},
            1,
            id="slice around the unit",
        ),
        pytest.param(
            "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n0::/",
            V1_MOUNT.format(top="/docker/a"),
            {"cpu,cpuacct/cpu.cfs_quota_us": "200000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            2,
            id="container, version 1",
        ),
        pytest.param(
            "3:cpu,cpuacct:/system.slice/align.service\n0::/system.slice/align.service",
            V1_MOUNT.format(top="/"),
            {
                "cpu,cpuacct/system.slice/align.service/cpu.cfs_quota_us": "50000",
                "cpu,cpuacct/system.slice/align.service/cpu.cfs_period_us": "100000",
            },
            1,
            id="unit, version 1",
        ),
        pytest.param(
            "3:cpu,cpuacct:/",
            V1_MOUNT.format(top="/"),
            {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            4,
            id="version 1 without a quota",
        ),
        pytest.param(
            "0::/../../elsewhere",
            V2_MOUNT.format(top="/"),
            {"cpu.max": "300000 100000"},
            3,
            id="group outside the namespace",
        ),
        pytest.param("", "", {}, 4, id="no groups"),
    ],
)
def test_every_quota_around_the_process_counts(
    tmp_path: Path, groups: str, mounts: str, quotas: dict[str, str], count: int
) -> None:
    """The lowest quota of the process's group and its parents counts, in both versions of control groups."""
    assert cpu_count(_machine(tmp_path, groups, mounts, quotas)) == count


@pytest.mark.parametrize(
    ("groups", "mounts", "quota"),
    [
        ("no colon\n0:one\n", V2_MOUNT.format(top="/"), "max 100000"),
        ("0::/\n", "30 - cgroup2 cgroup2 rw\n\n - cgroup2\n", "100000 100000"),
        ("0::/\n", V2_MOUNT.format(top="/"), f"{'9' * 400} 1"),
    ],
    ids=["groups", "mounts", "quota"],
)
def test_malformed_files_are_ignored(groups: str, mounts: str, quota: str, tmp_path: Path) -> None:
    """Emulated kernels may write less than Linux does, and the server must start anyway."""
    root = _machine(tmp_path / "odd", groups, mounts, {"cpu.max": quota})

    assert cpu_count(root) == 4


def test_a_mount_point_may_have_spaces(tmp_path: Path) -> None:
    """The kernel writes them as octal escapes."""
    mount = V2_MOUNT.format(top="/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/my\\040groups")
    root = _machine(tmp_path / "spaces", "0::/\n", mount, {"my groups/cpu.max": "200000 100000"})

    assert cpu_count(root) == 2


def test_without_proc_all_cores_count(tmp_path: Path) -> None:
    """Systems other than Linux have no /proc."""
    assert cpu_count(tmp_path) == 4


@pytest.mark.parametrize(("value", "count"), [("3", 3), ("9", 4), ("0", 1), ("default", 4)])
def test_the_environment_lowers_the_count(monkeypatch: pytest.MonkeyPatch, value: str, count: int) -> None:
    """PYTHON_CPU_COUNT applies as in Python itself, but cannot add cores."""
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
    """Every core is used; with fewer cores than workers, all workers use all cores."""
    assert [list(share(range(number), worker, workers)) for worker in range(workers)] == shares


@pytest.mark.parametrize(("quota", "count"), [("max 100000", 2), ("200000 100000", 1), ("300000 100000", 2)])
def test_a_share_counts_its_cores_and_its_part_of_the_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, count: int
) -> None:
    """Each of two workers on four cores uses at most two, and fewer if the common quota is lower."""
    _machine(tmp_path, "0::/", V2_MOUNT.format(top="/"), {"cpu.max": quota})
    monkeypatch.setattr(cores, "cpu_quotas", lambda _: cpu_quotas(tmp_path))
    monkeypatch.setenv("PYTHON_CPU_COUNT", "4")  # so that monkeypatch restores it afterwards
    held = {0, 1, 2, 3}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: held)
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, given: held.intersection_update(given))

    pin_to_share(1, 2)

    assert (held, cpu_count()) == ({2, 3}, count)
