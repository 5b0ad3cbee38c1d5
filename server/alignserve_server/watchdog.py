"""Ties health to progress: a server whose work does not move on reports NOT_SERVING until it does."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from alignserve_server.batching.batcher import Batcher
from alignserve_server.logs import get_logger
from alignserve_server.rpc.health import Readiness, State

_log = get_logger(__name__)

_T = TypeVar("_T")

_MAX_FAILED_BATCHES = 8  # in a row; then the device itself is asked


class PreprocessPool(ThreadPoolExecutor):
    """Threads that prepare inputs, and since when they have all been stuck."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads, "preprocess")
        self._threads_count = threads
        self._running_since: dict[int, float] = {}  # thread → start of its job

    def submit(self, job: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Queues a job; see `concurrent.futures.Executor`."""
        return super().submit(self._run, job, *args, **kwargs)

    def stuck_seconds(self) -> float:
        """Returns for how long no thread has finished or begun a job; 0 if one is free.

        One slow job is no stall: the input that makes it slow is the caller's, and others get past it.
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


class Watchdog:
    """Looks at the lanes and the preprocessing from time to time, and tells `readiness` what it sees."""

    def __init__(
        self,
        readiness: Readiness,
        batcher: Batcher,
        pool: PreprocessPool,
        probe: Callable[[], Awaitable[object]],
        *,
        stall_timeout_seconds: float,
        interval_seconds: float,
    ) -> None:
        """Prepares to watch; `run` does it.

        Args:
            readiness: What is told.
            batcher: Whose batches are watched.
            pool: Whose jobs are watched.
            probe: Runs the model once; raises if it fails.
            stall_timeout_seconds: What has not moved for longer is stalled.
            interval_seconds: Time between looks.
        """
        self._readiness = readiness
        self._batcher = batcher
        self._pool = pool
        self._probe = probe
        self._stall_timeout_seconds = stall_timeout_seconds
        self._interval_seconds = interval_seconds
        self._probing: asyncio.Future[object] | None = None

    async def run(self) -> None:
        """Watches until it is cancelled."""
        while True:
            await asyncio.sleep(self._interval_seconds)
            stall = await self._stall()
            if stall is not None and self._readiness.state is State.READY:
                _log.error("stalled", **stall)
                await self._readiness.enter(State.STALLED)
            elif stall is None and self._readiness.state is State.STALLED:
                _log.info("recovered")
                await self._readiness.enter(State.READY)

    async def _stall(self) -> dict[str, object] | None:
        """Returns what does not move on, as fields of the log."""
        running_seconds = {
            "batch": self._batcher.longest_running_seconds(),
            "preprocess": self._pool.stuck_seconds(),
        }
        for what, seconds in running_seconds.items():
            if seconds > self._stall_timeout_seconds:
                # A batch of a lane that died never ends, and JSON knows no infinity.
                return {
                    "what": what,
                    "running_seconds": round(seconds, 1) if math.isfinite(seconds) else None,
                }
        failed_batches = self._batcher.failed_batches
        if failed_batches >= _MAX_FAILED_BATCHES and not await self._probe_succeeds():
            return {"what": "device", "failed_batches": failed_batches}
        return None

    async def _probe_succeeds(self) -> bool:
        """Says whether the model works, on inputs that are known to be good; callers' may not be."""
        self._probing = self._probing or asyncio.ensure_future(self._probe())
        await asyncio.wait({self._probing}, timeout=self._stall_timeout_seconds)
        if not self._probing.done():  # it hangs; the next look waits for the same one
            return False
        error, self._probing = self._probing.exception(), None
        if error is None:
            self._batcher.failed_batches = 0
        return error is None
