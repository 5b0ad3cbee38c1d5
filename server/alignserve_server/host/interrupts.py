"""SIGTERM and SIGINT before, and after, somebody waits for them: an end without a traceback."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def end_at_signals(*, is_service: bool) -> None:
    """Ends the process at once at SIGTERM or SIGINT, until other handlers are installed.

    A service that is told to stop has done so, with 0, also while it starts. A command that does not come to
    its end must not look as if it did: 130 after SIGINT and 143 after SIGTERM, as shells have it.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        os._exit(0 if is_service else 128 + number)

    for number in STOP_SIGNALS:
        signal.signal(number, end)


@contextmanager
def restored_handlers() -> Iterator[None]:
    """Puts the handlers back that an event loop replaces, and would not put back when it drops its own."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
