"""The processor cores that this process may use: all that it is given, or one worker's part of them."""

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
    """Returns the cores that this process may use, which in a container are fewer than the machine's.

    `root` is where /proc and /sys are.
    """
    return min(_limits(root))


def take_share(worker: int, workers: int) -> None:
    """Leaves this process its part of the cores, and lets `cpu_count` say so.

    Threads that exist keep theirs, so it comes before any library that starts some.
    """
    # A container's quota says how many cores and not which, so it can only be divided as a number.
    os.environ[_COUNT] = str(math.ceil(cpu_count() / workers))
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0), key=_place)
        os.sched_setaffinity(0, share(cores, worker, workers))


def share(cores: Sequence[int], worker: int, workers: int) -> Sequence[int]:
    """Returns the part of one worker: disjoint from the others', or all if there are too few cores."""
    if workers > len(cores):
        return cores
    return cores[len(cores) * worker // workers : len(cores) * (worker + 1) // workers]


def _limits(root: Path) -> Iterator[int]:
    yield len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota in cpu_quotas(root):
        yield max(1, math.ceil(quota))
    with suppress(KeyError, ValueError):  # not set, or the word "default"
        yield max(1, int(os.environ[_COUNT]))


def _place(core: int) -> tuple[int, ...]:
    """Returns socket and physical core, so that cores that share memory and caches are sorted together."""
    topology = Path(_TOPOLOGY.format(core))
    try:
        return tuple(int((topology / name).read_text()) for name in ("physical_package_id", "core_id"))
    except (OSError, ValueError):
        return ()
