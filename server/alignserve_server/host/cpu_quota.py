"""CPU quotas that control groups set for this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from alignserve_server.host.control_groups import group_folders


def cpu_quotas(root: Path = Path("/")) -> Iterator[float]:
    """Yields the quotas, in cores, of the process's own group and of its parent groups."""
    for folder, is_version_1 in group_folders("cpu", root):
        with suppress(OSError, ValueError, OverflowError):  # no quota: no such file, or the word "max"
            yield _quota(folder, is_version_1=is_version_1)


def _quota(folder: Path, *, is_version_1: bool) -> float:
    if is_version_1:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    else:
        quota, period = map(int, (folder / "cpu.max").read_text().split())
    if quota <= 0 or period <= 0:  # -1 means no quota
        raise ValueError(f"no quota: {quota} of {period}")
    return quota / period
