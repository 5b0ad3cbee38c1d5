"""How many processes and threads this user or container may have."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from alignserve_server.host.control_groups import group_folders


def task_limit(root: Path = Path("/")) -> int | None:
    """Returns the lowest limit; None if there is none. `root` is where /proc and /sys are."""
    return min(_limits(root), default=None)


def _limits(root: Path) -> Iterator[int]:
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if limit != resource.RLIM_INFINITY:
        yield limit
    for folder, _ in group_folders("pids", root):
        with suppress(OSError, ValueError):  # no limit: no such file, or the word "max"
            yield int((folder / "pids.max").read_text())
