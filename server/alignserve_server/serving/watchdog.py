"""Ties health to progress: a server whose work does not move on reports NOT_SERVING until it does."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

from alignserve_server.api.readiness import Readiness, State, model_stalled
from alignserve_server.batching.batcher import Batcher
from alignserve_server.batching.preprocess_pool import PreprocessPool
from alignserve_server.observability.logs import get_logger
from alignserve_server.observability.metrics import Metrics

_log = get_logger(__name__)

_MAX_FAILED_BATCHES = 8  # in a row; then the device itself is asked


class Watchdog:
    """Looks at the lanes and the preprocessing from time to time, and tells `readiness` what it sees."""

    def __init__(
        self,
        readiness: Readiness,
        batcher: Batcher,
        pool: PreprocessPool,
        metrics: Metrics,
        probe: Callable[[], Awaitable[object]],
        *,
        stall_timeout_seconds: float,
        stall_exit_seconds: float,
        interval_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares to watch; `run` does it.

        Args:
            readiness: What is told.
            batcher: Whose batches are watched.
            pool: Whose jobs are watched.
            metrics: Takes how late the event loop is.
            probe: Runs the model once; raises if it fails.
            stall_timeout_seconds: What has not moved for longer is stalled.
            stall_exit_seconds: What has been stalled for longer is beyond help; 0 is never.
            interval_seconds: Time between looks.
            clock: Monotonic seconds.
        """
        self._readiness = readiness
        self._batcher = batcher
        self._pool = pool
        self._metrics = metrics
        self._probe = probe
        self._stall_timeout_seconds = stall_timeout_seconds
        self._stall_exit_seconds = stall_exit_seconds or math.inf
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._probing: asyncio.Future[object] | None = None
        self._stalled_since = math.inf

    async def run(self) -> None:
        """Watches; returns when nothing but a new process can help."""
        while not self._is_beyond_help():
            before = self._clock()
            await asyncio.sleep(self._interval_seconds)
            self._metrics.event_loop_lag.set(max(0.0, self._clock() - before - self._interval_seconds))
            self._metrics.event_loop_tasks.set(len(asyncio.all_tasks()))
            stall = await self._stall()
            if stall is None:
                self._recover()
            else:
                self._note(stall)

    def _note(self, stall: dict[str, object]) -> None:
        if self._readiness.state is State.READY:
            self._stalled_since = self._clock()
            _log.error("stalled", **stall)
            self._readiness.enter(State.STALLED)
        if self._readiness.state is State.STALLED:
            # Who waits can go elsewhere, and without a deadline would wait for ever. At every look, since
            # inputs that were still being prepared come to the queue later.
            self._batcher.give_up(model_stalled)

    def _recover(self) -> None:
        if self._readiness.state is State.STALLED:
            _log.info("recovered")
            self._stalled_since = math.inf
            self._readiness.enter(State.READY)

    def _is_beyond_help(self) -> bool:
        is_stalled = self._readiness.state is State.STALLED
        return is_stalled and (
            self._batcher.has_dead_lane or self._clock() - self._stalled_since > self._stall_exit_seconds
        )

    async def _stall(self) -> dict[str, object] | None:
        """Returns what does not move on, as fields of the log."""
        if self._batcher.has_dead_lane:
            return {"what": "lane"}
        running_seconds = {
            "batch": self._batcher.longest_running_seconds(),
            "preprocess": self._pool.stuck_seconds(),
        }
        for what, seconds in running_seconds.items():
            if seconds > self._stall_timeout_seconds:
                return {"what": what, "running_seconds": round(seconds, 1)}
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
