"""The items that wait to be sent, shared by all streams, and the bound on how many are in flight."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """An item.

    Attributes:
        size: In bytes.
    """

    size: int


_Item = TypeVar("_Item", bound=Sized)


class Backlog(Generic[_Item]):
    """Hands out items first in, first out; those that come back go first.

    An item is in flight from when it is added until it is settled.

    Args:
        max_items: In flight; reading pauses above it.
        max_bytes: The same, by the size of the items.
    """

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._waiting: deque[_Item] = deque()
        self._items = 0  # in flight
        self._bytes = 0
        self._is_closed = False
        self._has_items = asyncio.Event()  # or is closed
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._closed = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._settled_at = self._clock()  # the last one, or when items came after a time without any

    def add(self, item: _Item) -> None:
        """Adds an item at the end."""
        if not self._items:
            self._settled_at = self._clock()
        self._count(1, item.size)
        self._waiting.append(item)
        self._has_items.set()

    def put_back(self, items: Iterable[_Item]) -> None:
        """Puts items that were handed out before all others, in their order."""
        self._waiting.extendleft(reversed(list(items)))
        self._has_items.set()

    def settle(self, item: _Item) -> None:
        """Counts an item as done."""
        self._settled_at = self._clock()
        self._count(-1, -item.size)

    async def next(self) -> _Item | None:
        """Returns the next item, once there is one, or `None` after `close`."""
        while not self._waiting:
            if self._is_closed:
                return None
            self._has_items.clear()
            await self._has_items.wait()
        return self._waiting.popleft()

    async def wait_for_room(self) -> None:
        """Returns once more may be read."""
        await self._has_room.wait()

    def stalled_seconds(self) -> float:
        """Returns for how long items have been in flight without any of them being settled."""
        return self._clock() - self._settled_at if self._items else 0.0

    def close(self) -> None:
        """Ends the waits: no more items will come."""
        self._is_closed = True
        self._closed.set()
        self._has_items.set()

    async def wait_closed(self, seconds: float | None = None) -> bool:
        """Returns whether it was closed in this time."""
        try:
            await asyncio.wait_for(self._closed.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _count(self, items: int, size: int) -> None:
        self._items += items
        self._bytes += size
        if self._items < self._max_items and self._bytes < self._max_bytes:
            self._has_room.set()
        else:
            self._has_room.clear()
