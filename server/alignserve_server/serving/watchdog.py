"""Ties health to progress: a server whose work makes no progress reports NOT_SERVING until it does."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from alignserve_server.api.readiness import Readiness, State, model_stalled
from alignserve_server.batching.batcher import Batcher
from alignserve_server.batching.preprocess_pool import PreprocessPool
from alignserve_server.host.waiting import first_of
from alignserve_server.model.encoder import DeviceLost
from alignserve_server.observability.logs import get_logger
from alignserve_server.observability.metrics import Metrics

_log = get_logger(__name__)

_MAX_FAILED_BATCHES = 8  # in a row; then the device is probed
_LONGEST_INTERVAL_SECONDS = 1.0
_CHECKS_PER_TIMEOUT = 10


@dataclass(frozen=True, slots=True)
class StallPolicy:
    """When work counts as stalled, and when as unrecoverable.

    Attributes:
        timeout_seconds: Work without progress for longer is stalled.
        exit_seconds: A stall that lasts longer is unrecoverable; 0 never is.
    """

    timeout_seconds: float
    exit_seconds: float

    @property
    def interval_seconds(self) -> float:
        """Interval between checks."""
        return min(_LONGEST_INTERVAL_SECONDS, self.timeout_seconds / _CHECKS_PER_TIMEOUT)


class Watchdog:
    """Checks the lanes and the preprocessing at intervals, and updates `readiness`."""

    def __init__(
        self,
        readiness: Readiness,
        batcher: Batcher,
        pool: PreprocessPool,
        metrics: Metrics,
        probe: Callable[[], Awaitable[object]],
        policy: StallPolicy,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Does not start checking; `run` does.

        Args:
            readiness: Updated with the result.
            batcher: Its batches are watched.
            pool: Its jobs are watched.
            metrics: Gets the event loop lag.
            probe: Runs the model once; raises if it fails.
            policy: Limits.
            clock: Monotonic seconds.
        """
        self._readiness = readiness
        self._batcher = batcher
        self._pool = pool
        self._metrics = metrics
        self._probe = probe
        self._policy = policy
        self._clock = clock
        self._probing: asyncio.Future[object] | None = None
        self._stalled_since = math.inf

    async def run(self) -> None:
        """Watches; returns when a stall is unrecoverable, or the device is lost: a new process is needed."""
        interval_seconds = self._policy.interval_seconds
        while not self._is_unrecoverable():
            before = self._clock()
            await first_of(asyncio.sleep(interval_seconds), self._batcher.device_lost.wait())
            if self._batcher.device_lost.is_set():
                self._readiness.enter(State.STALLED)
                return
            self._metrics.event_loop_lag.set(max(0.0, self._clock() - before - interval_seconds))
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
            # Waiting callers can try another replica, and without a deadline would never return. At every
            # check, since inputs that were still being preprocessed reach the queue later.
            self._batcher.give_up(model_stalled)

    def _recover(self) -> None:
        if self._readiness.state is State.STALLED:
            _log.info("recovered")
            self._stalled_since = math.inf
            self._readiness.enter(State.READY)

    def _is_unrecoverable(self) -> bool:
        if self._readiness.state is not State.STALLED:
            return False
        exit_seconds = self._policy.exit_seconds or math.inf
        return self._batcher.has_dead_lane or self._clock() - self._stalled_since > exit_seconds

    async def _stall(self) -> dict[str, object] | None:
        """Returns what makes no progress, as fields of the log event."""
        if self._batcher.has_dead_lane:
            return {"what": "lane"}
        running_seconds = {
            "batch": self._batcher.longest_running_seconds(),
            "preprocess": self._pool.stuck_seconds(),
        }
        for what, seconds in running_seconds.items():
            if seconds > self._policy.timeout_seconds:
                return {"what": what, "running_seconds": round(seconds, 1)}
        failed_batches = self._batcher.failed_batches
        if failed_batches >= _MAX_FAILED_BATCHES and not await self._probe_succeeds():
            return {"what": "device", "failed_batches": failed_batches}
        return None

    async def _probe_succeeds(self) -> bool:
        """Returns whether the model works on inputs that are known to be good, unlike those of callers."""
        self._probing = self._probing or asyncio.ensure_future(self._probe())
        await asyncio.wait({self._probing}, timeout=self._policy.timeout_seconds)
        if not self._probing.done():  # it hangs; the next check waits for the same one
            return False
        error, self._probing = self._probing.exception(), None
        if error is None:
            self._batcher.failed_batches = 0
        elif isinstance(error, DeviceLost):
            self._batcher.lose_device(error)
        return error is None
