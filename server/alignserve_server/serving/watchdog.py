"""Ties health to progress: a server whose work makes no progress reports NOT_SERVING until it does."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alignserve_server.api.readiness import Readiness, State
from alignserve_server.host.waiting import first_of
from alignserve_server.observability.logs import get_logger
from alignserve_server.observability.metrics import Metrics
from alignserve_server.serving.watched import Stall, Watched

_log = get_logger(__name__)

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
    """Checks at intervals whether work makes progress, and updates `readiness`."""

    def __init__(
        self,
        readiness: Readiness,
        watched: Sequence[Watched],
        metrics: Metrics,
        policy: StallPolicy,
        lost: asyncio.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Does not start checking; `run` does.

        Args:
            readiness: Updated with the result.
            watched: The work.
            metrics: Gets the event loop lag.
            policy: Limits.
            lost: Set once only another process can make progress.
            clock: Monotonic seconds.
        """
        self._readiness = readiness
        self._watched = watched
        self._metrics = metrics
        self._policy = policy
        self._lost = lost or asyncio.Event()
        self._clock = clock
        self._stalled_since = math.inf

    async def run(self) -> None:
        """Watches; returns when a stall is unrecoverable, or the device is lost: a new process is needed."""
        interval_seconds = self._policy.interval_seconds
        while not self._is_unrecoverable():
            before = self._clock()
            await first_of(asyncio.sleep(interval_seconds), self._lost.wait())
            if self._lost.is_set():
                self._readiness.enter(State.STALLED)
                return
            self._metrics.event_loop_lag.set(max(0.0, self._clock() - before - interval_seconds))
            self._metrics.event_loop_tasks.set(len(asyncio.all_tasks()))
            stall = await self._stall()
            if stall is None:
                self._recover()
            else:
                self._note(stall)

    def _note(self, stall: Stall) -> None:
        if self._readiness.state is State.READY:
            self._stalled_since = self._clock()
            _log.error("stalled", **stall)
            self._readiness.enter(State.STALLED)
        if self._readiness.state is State.STALLED:
            # Waiting callers can try another replica, and without a deadline would never return. At every
            # check, since inputs that were still being preprocessed reach the queue later.
            for watched in self._watched:
                watched.give_up()

    def _recover(self) -> None:
        has_stalled, self._stalled_since = self._stalled_since < math.inf, math.inf
        if has_stalled and self._readiness.state is State.STALLED:  # in a front, the device may have stalled
            _log.info("recovered")
            self._readiness.enter(State.READY)

    def _is_unrecoverable(self) -> bool:
        if self._readiness.state is not State.STALLED:
            return False
        exit_seconds = self._policy.exit_seconds or math.inf
        is_lost = any(watched.is_lost for watched in self._watched)
        return is_lost or self._clock() - self._stalled_since > exit_seconds

    async def _stall(self) -> Stall | None:
        """Returns what makes no progress."""
        for watched in self._watched:
            if (stall := await watched.stall(self._policy.timeout_seconds)) is not None:
                return stall
        return None
