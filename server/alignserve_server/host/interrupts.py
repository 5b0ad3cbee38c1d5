"""SIGTERM and SIGINT while no event loop handles them: the process ends without a traceback."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def end_at_signals(*, is_service: bool) -> None:
    """Ends the process immediately on SIGTERM or SIGINT, until other handlers are installed.

    A service exits with 0, also while it starts. A command that is interrupted must not look successful: it
    exits with 130 after SIGINT and 143 after SIGTERM, as in shells.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        os._exit(0 if is_service else 128 + number)

    for number in STOP_SIGNALS:
        signal.signal(number, end)


@contextmanager
def restored_handlers() -> Iterator[None]:
    """Restores the signal handlers that an event loop replaces and does not restore."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
