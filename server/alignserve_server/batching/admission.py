"""Who may come in: room for a bounded number of items and bytes, per modality.

An item takes room when its call is admitted and gives it back when a lane takes it, or when it leaves.
Until it is prepared the room is *reserved*; from then on it is counted where it waits, in the queue.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from alignserve_server.errors import QueueFull

# Streams and label prompts wait for room, unary calls are refused for lack of it. If those who wait could
# fill every place, they would take each one that falls free and unary calls would starve.
_WAITING_SHARE = 0.75


class Room:
    """Room for the items of one modality. Belongs to the event loop's thread."""

    def __init__(
        self,
        modality: str,
        *,
        max_items: int,
        max_bytes: int,
        queued: Callable[[], tuple[int, int]],
        retry_delay: Callable[[], float],
    ) -> None:
        self._modality = modality
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._queued = queued  # (items, bytes) that wait in the queue
        self._retry_delay = retry_delay
        self._reserved_items = 0
        self._reserved_bytes = 0
        self._waiters: deque[tuple[int, int, asyncio.Future[None]]] = deque()

    @property
    def has_waiters(self) -> bool:
        return bool(self._waiters)

    @property
    def max_waiting_items(self) -> int:
        """The most items that `wait` can get beside others; more have to wait until nothing else is there."""
        return max(1, int(self._max_items * _WAITING_SHARE))

    def reserve(self, items: int, size_bytes: int) -> None:
        """Takes room at once.

        Raises:
            QueueFull: There is not enough.
        """
        if not self._fits(items, size_bytes, 1.0):
            waiting, waiting_bytes = self._used()
            raise QueueFull(
                f"{waiting} {self._modality} items ({waiting_bytes} bytes) wait, limit {self._max_items} "
                f"({self._max_bytes} bytes); retry after the delay given, or send less at once",
                retry_delay_seconds=self._retry_delay(),
            )
        self._reserve(items, size_bytes)

    async def wait(self, items: int, size_bytes: int) -> None:
        """Takes room as soon as there is enough, first come first served."""
        if not self._waiters and self._fits(items, size_bytes, _WAITING_SHARE):
            self._reserve(items, size_bytes)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (items, size_bytes, turn)
        self._waiters.append(waiter)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.release(items, size_bytes)  # the room came at the moment of leaving
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
                self.wake()  # a smaller one behind may fit
            raise

    def release(self, items: int, size_bytes: int) -> None:
        """Gives reserved room back: the items left, or wait in the queue from now on."""
        self._reserved_items -= items
        self._reserved_bytes -= size_bytes
        self.wake()

    def wake(self) -> None:
        """Lets in those who wait, in order, as far as there is room."""
        while self._waiters:
            items, size_bytes, turn = self._waiters[0]
            if not turn.cancelled():
                if not self._fits(items, size_bytes, _WAITING_SHARE):
                    return
                self._reserve(items, size_bytes)
                turn.set_result(None)
            self._waiters.popleft()

    def _reserve(self, items: int, size_bytes: int) -> None:
        self._reserved_items += items
        self._reserved_bytes += size_bytes

    def _used(self) -> tuple[int, int]:
        queued_items, queued_bytes = self._queued()
        return self._reserved_items + queued_items, self._reserved_bytes + queued_bytes

    def _fits(self, items: int, size_bytes: int, share: float) -> bool:
        used_items, used_bytes = self._used()
        if used_items == 0:
            return True  # whatever passed the request's own limits can run alone
        return (
            used_items + items <= self._max_items * share
            and used_bytes + size_bytes <= self._max_bytes * share
        )
