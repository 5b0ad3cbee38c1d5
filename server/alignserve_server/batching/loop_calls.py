"""Calls from other threads to the event loop, which wakes up once for all that come while it is busy."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any


class LoopCalls:
    """Runs callbacks on the event loop, in order. Thread-safe."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._will_run = False

    def add(self, callback: Callable[..., object], *arguments: object) -> None:
        """Calls back soon, unless the loop is closed: a batch outlives it if `Batcher.stop` timed out."""
        self._calls.append((callback, arguments))
        if not self._will_run:  # if two threads find it so at once, the loop runs once more than it must
            self._will_run = True
            self._schedule()

    def _schedule(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        self._will_run = False  # first, so that a call which comes from now on runs here or in another run
        try:
            while self._calls:
                callback, arguments = self._calls.popleft()
                callback(*arguments)
        finally:
            if self._calls:  # a callback has raised, which is not the fault of the others
                self._schedule()
