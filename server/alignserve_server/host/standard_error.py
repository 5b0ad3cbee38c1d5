"""Standard error of a server process: open, and never blocking.

The log has a writer thread, but other code also writes there, from any thread: C++ libraries, and Python for
errors that nothing handles. A pipe that is not read would block them.
"""

from __future__ import annotations

import io
import logging
import os
import stat
import sys
import threading
from contextlib import suppress

_log = logging.getLogger(__name__)  # not structlog, which may be missing when this is imported


def open_standard_streams() -> None:
    """Opens closed standard streams on the null device.

    Otherwise the next socket would get their number, and receive what libraries write to standard error.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    # Python's own streams are None if they were closed when it started.
    sys.stdin = sys.stdin or open(0)  # noqa: SIM115 — a descriptor, for the process's life
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115 — as above
    sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115 — as above
    for stream in (sys.stdout, sys.stderr):
        # A path or a variable may contain characters that the locale cannot encode.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def keep_standard_error_from_blocking() -> None:
    """Logs what Python would print, and drops what C++ libraries write if it does not fit."""
    # gRPC reads it when it starts. By default it logs each failed handshake, which any client can cause, and
    # its lines are not JSON.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    logging.captureWarnings(capture=True)
    sys.unraisablehook = _log_unraisable
    threading.excepthook = _log_thread
    with suppress(OSError):  # not permitted, for example after a change of user; then it may block
        _stop_blocking(2)


def _stop_blocking(descriptor: int) -> None:
    """Reopens a pipe or terminal in non-blocking mode, without affecting other processes that share it."""
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or os.isatty(descriptor)):
        return  # a file does not block, and reopening it would overwrite it from the start
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
