"""What the watchdog watches: the lanes, and the threads that decode."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

from alignserve_server.api.readiness import model_stalled
from alignserve_server.batching.batcher import Batcher
from alignserve_server.batching.preprocess_pool import PreprocessPool
from alignserve_server.model.encoder import DeviceLost

Stall: TypeAlias = dict[str, object]  # what makes no progress, as fields of a log event

_MAX_FAILED_BATCHES = 8  # in a row; then the device is probed


class Watched(Protocol):
    """Work that must make progress. Use only on the event loop's thread."""

    @property
    def is_lost(self) -> bool:
        """Whether only another process can make progress again."""
        ...

    async def stall(self, timeout_seconds: float) -> Stall | None:
        """Returns what has made no progress for longer than the timeout."""
        ...

    def give_up(self) -> None:
        """Answers the callers whose work has stalled."""
        ...


class WatchedDecoding:
    """The threads that decode images."""

    is_lost = False

    def __init__(self, pool: PreprocessPool) -> None:
        self._pool = pool

    async def stall(self, timeout_seconds: float) -> Stall | None:
        """Returns a stall if every thread is stuck; see `PreprocessPool.stuck_seconds`."""
        return _too_long("preprocess", self._pool.stuck_seconds(), timeout_seconds)

    def give_up(self) -> None:
        """Does nothing: a decode cannot be interrupted."""


class WatchedLanes:
    """The lanes, their batches and the device."""

    def __init__(self, batcher: Batcher, probe: Callable[[], Awaitable[object]]) -> None:
        """Takes the batcher, and a function that runs the model once and raises if it fails."""
        self._batcher = batcher
        self._probe = probe
        self._probing: asyncio.Future[object] | None = None

    @property
    def is_lost(self) -> bool:
        """Whether a lane has died."""
        return self._batcher.has_dead_lane

    async def stall(self, timeout_seconds: float) -> Stall | None:
        """Returns a stall if a lane has died, a batch takes too long, or all batches fail."""
        if self._batcher.has_dead_lane:
            return {"what": "lane"}
        stall = _too_long("batch", self._batcher.longest_running_seconds(), timeout_seconds)
        if stall is not None:
            return stall
        failed_batches = self._batcher.failed_batches
        if failed_batches >= _MAX_FAILED_BATCHES and not await self._probe_succeeds(timeout_seconds):
            return {"what": "device", "failed_batches": failed_batches}
        return None

    def give_up(self) -> None:
        """Answers every call that waits or is in the model."""
        self._batcher.give_up(model_stalled)

    async def _probe_succeeds(self, timeout_seconds: float) -> bool:
        """Returns whether the model works on inputs that are known to be good, unlike those of callers."""
        self._probing = self._probing or asyncio.ensure_future(self._probe())
        await asyncio.wait({self._probing}, timeout=timeout_seconds)
        if not self._probing.done():  # it hangs; the next check waits for the same one
            return False
        error, self._probing = self._probing.exception(), None
        if error is None:
            self._batcher.failed_batches = 0
        elif isinstance(error, DeviceLost):
            self._batcher.lose_device(error)
        return error is None


def _too_long(what: str, seconds: float, timeout_seconds: float) -> Stall | None:
    return {"what": what, "running_seconds": round(seconds, 1)} if seconds > timeout_seconds else None
