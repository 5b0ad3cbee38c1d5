"""Standard error of a server process: open, and never what a thread waits for.

The log is written by a thread of its own, but others write there too, from whichever thread they run in: C++
libraries, and Python where nobody else handles an error. A pipe that nobody reads would block them.
"""

from __future__ import annotations

import io
import logging
import os
import stat
import sys
import threading
from contextlib import suppress

_log = logging.getLogger(__name__)  # the library's, so that this can be imported where structlog is missing


def open_standard_streams() -> None:
    """Opens whichever standard stream is closed on the null device.

    Or the next socket to be opened would have its number, and get what libraries write to standard error.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    # Python's own are None if they were closed when it started.
    sys.stdin = sys.stdin or open(0)  # noqa: SIM115 — a descriptor, for the process's life
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A path or a variable may hold what the locale, or no locale, has a character for.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def keep_standard_error_from_blocking() -> None:
    """Has what would be printed logged, and what C++ libraries write skipped where it does not fit."""
    # Read when gRPC starts. By default it reports each failed handshake, of which a stranger can make many,
    # and none of its lines is JSON.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    logging.captureWarnings(capture=True)
    sys.unraisablehook = _log_unraisable
    threading.excepthook = _log_thread
    with suppress(OSError):  # not ours to open, for one after a change of user; then it stays as it is
        _stop_blocking(2)


def _stop_blocking(descriptor: int) -> None:
    """Opens a pipe or terminal once more, in non-blocking mode, which whoever shares it must not notice."""
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or os.isatty(descriptor)):
        return  # a file does not block, and opened anew would be written from its beginning
    own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    os.dup2(own, descriptor)
    os.close(own)


def _log_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    where = f"{unraisable.err_msg or 'Exception ignored in'}: {type(unraisable.object).__name__}"
    _log.error(where, exc_info=unraisable.exc_value)


def _log_thread(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_type is not SystemExit:
        name = failure.thread.name if failure.thread else "?"
        _log.error("Exception in thread %s", name, exc_info=failure.exc_value)
