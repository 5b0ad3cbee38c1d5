"""How many threads a forward uses: cores that nobody else uses when it begins."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_LOAD = Path("/proc/loadavg")


class CoreShare:
    """Shares cores among the forwards that run at once, and leaves those that others work on.

    More threads than free cores are worse than one: they meet at barriers hundreds of times in a forward, and
    there all wait for the one that has no core.
    """

    def __init__(
        self,
        cores: int,
        most: int,
        machine_cores: int = os.cpu_count() or 1,
        running_tasks: Callable[[], int] | None = None,
    ) -> None:
        """Prepares to share.

        Args:
            cores: Those that this process may use.
            most: Threads of one forward at the most.
            machine_cores: Those of the machine.
            running_tasks: Tells how many threads of the machine want a core now, the caller's among them.
        """
        self._cores = cores
        self._most = most
        self._machine_cores = machine_cores
        self._running_tasks = running_tasks or _running_tasks
        self._forwards = 0
        self._changed = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[int]:
        """Counts a forward while it runs; yields the number of its threads."""
        with self._changed:
            self._forwards += 1
            share = min(self._most, self._cores // self._forwards)
        try:
            yield max(1, min(share, self._free_cores())) if share > 1 else 1
        finally:
            with self._changed:
                self._forwards -= 1

    def _free_cores(self) -> int:
        """Returns the cores that nobody uses, with the caller's own."""
        return self._machine_cores - self._running_tasks() + 1


def _running_tasks() -> int:
    try:
        return int(_LOAD.read_text().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):  # not Linux
        return 1
