"""CPU usage of other processes during a measurement."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

_STAT = Path("/proc/stat")
_IDLE = (3, 4)  # columns of idle and iowait, see `man proc_stat`
_COUNTED = 8  # columns; later ones are included in the first two


class OtherWork:
    """Starts to measure when it is created."""

    def __init__(
        self,
        machine_seconds: Callable[[], float | None] | None = None,
        own_seconds: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._machine_seconds = machine_seconds or _busy_seconds
        self._own_seconds = own_seconds
        self._clock = clock
        self._start = clock()
        self._at_start = self._others()

    def cores(self) -> float | None:
        """Returns how many cores other processes kept busy, on average; None if unknown."""
        seconds, now, then = self._clock() - self._start, self._others(), self._at_start
        if now is None or then is None or seconds <= 0:
            return None
        return max(0.0, (now - then) / seconds)

    def _others(self) -> float | None:
        machine = self._machine_seconds()
        return None if machine is None else machine - self._own_seconds()


def _busy_seconds() -> float | None:
    try:
        columns = [int(column) for column in _STAT.read_text().split(maxsplit=9)[1 : _COUNTED + 1]]
    except (OSError, ValueError, IndexError):  # not Linux, or hidden
        return None
    ticks = sum(columns) - sum(columns[column] for column in _IDLE)
    return ticks / os.sysconf("SC_CLK_TCK")
