"""The control groups of this process, whose files have its limits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def group_folders(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, bool]]:
    """Yields the folders of the process's own group and of its parents, with whether each is of version 1.

    Containers see their group as the root; a systemd unit is a group further down. Versions 1 and 2 of
    control groups may be mounted at the same time.

    Args:
        controller: As version 1 names it: cpu or memory.
        root: Where /proc and /sys are.
    """
    own_groups = dict(_own_groups(root))
    for mount_point, top, is_version_1 in _mounts(controller, root):
        for folder in _folders(mount_point, top, own_groups.get(controller if is_version_1 else "", "/")):
            yield folder, is_version_1


def _own_groups(root: Path) -> Iterator[tuple[str, str]]:
    """Yields each controller with the process's group in it; version 2 has one for all, and the name ''."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = (*line.split(":", 2), "", "")[:3]
        for controller in controllers.split(",") if group else ():
            yield controller, group


def _mounts(controller: str, root: Path) -> Iterator[tuple[Path, str, bool]]:
    """Yields where limits can be read: the mount point, the group at its top, and whether it is version 1."""
    for line in _lines(root / "proc/self/mountinfo"):
        fields, _, rest = line.partition(" - ")
        kind, _, options = (*rest.split(" ", 2), "", "")[:3]
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
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


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:  # not Linux, or /proc is not there
        return []
