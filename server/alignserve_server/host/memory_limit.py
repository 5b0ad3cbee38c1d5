"""How much memory this process may use: the machine's, or the least that a control group allows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from alignserve_server.host.control_groups import group_folders


class MemoryLimit(NamedTuple):
    """A limit and what sets it."""

    size: int  # bytes
    source: str


def memory_limit(root: Path = Path("/")) -> MemoryLimit | None:
    """Returns the lowest limit; None if the system does not tell. `root` is where /proc and /sys are."""
    return min(_limits(root), default=None)


def _limits(root: Path) -> Iterator[MemoryLimit]:
    with suppress(OSError, ValueError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                yield MemoryLimit(int(line.split()[1]) << 10, "the machine's memory")
    for folder, is_version_1 in group_folders("memory", root):
        path = folder / ("memory.limit_in_bytes" if is_version_1 else "memory.max")
        with suppress(OSError, ValueError):  # no limit: no such file, or the word "max"
            yield MemoryLimit(int(path.read_text()), f"the limit in {path}")
