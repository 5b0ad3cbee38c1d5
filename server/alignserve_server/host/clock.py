"""Evidence that the system clock is right: NTP's state, and a second clock that nothing sets."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from datetime import UTC, datetime

_UNSYNCHRONIZED = 0x40  # STA_UNSYNC of adjtimex(2)


class ClockSteps:
    """Detects that the system clock is set while this object exists."""

    def __init__(
        self,
        system: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._system, self._steady = system, steady
        self._offset = system() - steady()

    def seconds(self) -> float:
        """Returns by how much the system clock has been moved, forward if positive."""
        return self._system() - self._steady() - self._offset


class _Timex(ctypes.Structure):
    """struct timex of <sys/timex.h>, up to the status; the rest is room that the kernel fills."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 512),
    )


def is_synchronized() -> bool | None:
    """Returns whether the kernel says that NTP keeps the clock; None if it does not tell."""
    read = getattr(ctypes.CDLL(None), "adjtimex", None)  # glibc and musl; without modes it only reads
    if read is None:
        return None
    state = _Timex()
    if read(ctypes.byref(state)) < 0:  # refused, as in some containers
        return None
    return not state.status & _UNSYNCHRONIZED


def utc(seconds: float) -> str:
    """Returns a Unix time as text, to the minute."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
