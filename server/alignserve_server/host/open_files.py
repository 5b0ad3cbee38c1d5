"""How many files the process may have open, of which each connection is one."""

from __future__ import annotations

import resource
from contextlib import suppress


def allow_open_files() -> None:
    """Raises the limit as far as this process may.

    It is often 1,024, for programs that use select(): so many connections would keep everybody else out.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # systems on which "unlimited" is too much; then it stays as it is
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
