"""The processor cores that this process may use: all that are available, or one worker's share of them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from alignserve_server.host.cpu_quota import cpu_quotas

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology"
_COUNT = "PYTHON_CPU_COUNT"  # lowers Python's own count too, from 3.13 on


def cpu_count(root: Path = Path("/")) -> int:
    """Returns how many cores this process may use; in a container fewer than the machine has.

    `root` is where /proc and /sys are.
    """
    return min(_limits(root))


def pin_to_share(worker: int, workers: int, *, parts: int = 1) -> None:
    """Pins this process to its share of the cores, and lowers `cpu_count` accordingly.

    If several processes have the same share, `cpu_count` is this one's part of it, but any core may be used.
    Existing threads are not pinned, so call it before importing a library that starts threads.
    """
    # A container's quota limits the number of cores, not which, so only the number can be divided.
    os.environ[_COUNT] = str(math.ceil(cpu_count() / (workers * parts)))
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0), key=_topology_key)
        os.sched_setaffinity(0, share(cores, worker, workers))


def share(cores: Sequence[int], worker: int, workers: int) -> Sequence[int]:
    """Returns the share of one worker: disjoint from the others', or all cores if there are too few."""
    if workers > len(cores):
        return cores
    return cores[len(cores) * worker // workers : len(cores) * (worker + 1) // workers]


def _limits(root: Path) -> Iterator[int]:
    yield len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota in cpu_quotas(root):
        yield max(1, math.ceil(quota))
    with suppress(KeyError, ValueError):  # not set, or the word "default"
        yield max(1, int(os.environ[_COUNT]))


def _topology_key(core: int) -> tuple[int, ...]:
    """Returns socket and physical core, so that cores that share memory and caches are adjacent."""
    topology = Path(_TOPOLOGY.format(core))
    try:
        return tuple(int((topology / name).read_text()) for name in ("physical_package_id", "core_id"))
    except (OSError, ValueError):
        return ()
