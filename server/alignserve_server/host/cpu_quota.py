"""CPU quotas that control groups set for this process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath


def cpu_quotas(root: Path = Path("/")) -> Iterator[float]:
    """Yields the quotas, in cores, of the process's own group and of its parent groups.

    Containers see their group as the root; a systemd unit is a group further down. Versions 1 and 2 of
    control groups may be mounted at the same time. `root` is where /proc and /sys are.
    """
    own_groups = dict(_own_groups(root))
    for mount_point, top, is_version_1 in _mounts(root):
        for folder in _folders(mount_point, top, own_groups.get("cpu" if is_version_1 else "", "/")):
            with suppress(OSError, ValueError, OverflowError):  # no quota: no such file, or the word "max"
                yield _quota(folder, is_version_1=is_version_1)


def _own_groups(root: Path) -> Iterator[tuple[str, str]]:
    """Yields each controller with the process's group in it; version 2 has one for all, and the name ''."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = (*line.split(":", 2), "", "")[:3]
        for controller in controllers.split(",") if group else ():
            yield controller, group


def _mounts(root: Path) -> Iterator[tuple[Path, str, bool]]:
    """Yields where quotas can be read: the mount point, the group at its top, and whether it is version 1."""
    for line in _lines(root / "proc/self/mountinfo"):
        fields, _, rest = line.partition(" - ")
        kind, _, options = (*rest.split(" ", 2), "", "")[:3]
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(",")):
            top, mount_point = (*fields.split(" ")[3:5], "", "")[:2]
            if mount_point:  # emulated kernels may omit it
                yield root / _unescaped(mount_point).lstrip("/"), _unescaped(top), kind == "cgroup"


def _unescaped(path: str) -> str:
    """Returns a path of mountinfo, where the kernel writes a space as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _folders(mount_point: Path, top: str, own: str) -> Iterator[Path]:
    """Yields the folders of the process's group and of its parents, as far as they are mounted."""
    try:
        below = PurePosixPath(own).relative_to(top)
    except ValueError:  # the group is not below the mount: a container sees its own at the top
        below = PurePosixPath()
    if ".." in below.parts:  # moved out of its namespace
        below = PurePosixPath()
    for group in (below, *below.parents):
        yield mount_point / group


def _quota(folder: Path, *, is_version_1: bool) -> float:
    if is_version_1:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    else:
        quota, period = map(int, (folder / "cpu.max").read_text().split())
    if quota <= 0 or period <= 0:  # -1 means no quota
        raise ValueError(f"no quota: {quota} of {period}")
    return quota / period


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:  # not Linux, or /proc is not there
        return []
