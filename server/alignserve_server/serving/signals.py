"""SIGTERM and SIGINT as events that interrupt what the server waits for."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager

from alignserve_server.host.interrupts import STOP_SIGNALS
from alignserve_server.host.waiting import first_of


@contextmanager
def received_signals() -> Iterator[asyncio.Queue[int]]:
    """Yields a queue of the SIGTERM and SIGINT signals that the process receives within the block."""
    loop = asyncio.get_running_loop()
    received: asyncio.Queue[int] = asyncio.Queue()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, received.put_nowait, number)
    try:
        yield received
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


async def signal_during(work: Awaitable[None], signals: asyncio.Queue[int]) -> signal.Signals | None:
    """Waits for the work; if a signal comes first, cancels the work and returns the signal.

    Raises:
        Exception: Whatever the work raises.
    """
    number = await first_of(work, signals.get())
    return None if number is None else signal.Signals(number)
