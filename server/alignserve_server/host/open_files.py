"""The limit on open files, to which every connection counts."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress


def allow_open_files() -> None:
    """Raises the limit to the maximum for this process.

    It is often 1,024, for programs that use select(): then 1,024 connections would lock out everyone else.
    """
    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems refuse "unlimited"; then the limit stays
        resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))


def max_open_files() -> int:
    """Returns the limit for this process."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit
