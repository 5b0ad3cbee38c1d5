"""Blocking work that must not keep a process from ending."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_T = TypeVar("_T")


async def in_daemon_thread(work: Callable[[], _T]) -> _T:
    """Runs the work in a daemon thread: unlike a pool's thread, it does not delay the end of the process."""
    outcome: Future[_T] = Future()
    outcome.set_running_or_notify_cancel()  # so that it accepts the outcome even after the wait is cancelled

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 — raised where the outcome is awaited
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(outcome)
