"""What Linux knows about other processes of this machine."""

from __future__ import annotations

import time


def cpu_seconds(pid: int) -> float:
    """Returns the CPU time of a process so far, of all its threads. Raises OSError if there is none."""
    return time.clock_gettime(~pid << 3 | 2)  # its clock, as clock_getcpuclockid(3) makes it
