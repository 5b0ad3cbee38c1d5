"""The processor that figures were measured on."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path


def processor() -> str:
    """Returns the number of cores and their name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else ():
        if line.startswith("model name"):
            return f"{os.cpu_count()} cores of {line.split(':', 1)[1].strip()}"
    return f"{os.cpu_count()} cores of {platform.processor() or platform.machine()}"
