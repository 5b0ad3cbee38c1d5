"""The threads that decode images, with a check for whether all of them are stuck."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_T = TypeVar("_T")


class PreprocessPool(ThreadPoolExecutor):
    """A thread pool for preparing inputs that reports how long all its threads have been stuck."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads, "preprocess")
        self._threads_count = threads
        self._running_since: dict[int, float] = {}  # thread → start of its job

    def submit(self, job: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Queues a job; see `concurrent.futures.Executor`."""
        return super().submit(self._run, job, *args, **kwargs)

    def stuck_seconds(self) -> float:
        """Returns how long it has been since any thread finished or started a job; 0 if one is free.

        One slow job is not a stall: its caller chose the slow input, and other jobs can run past it.
        """
        started = list(self._running_since.values())
        return time.monotonic() - max(started) if len(started) == self._threads_count else 0.0

    def _run(self, job: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        thread = threading.get_ident()
        self._running_since[thread] = time.monotonic()
        try:
            return job(*args, **kwargs)
        finally:
            del self._running_since[thread]
