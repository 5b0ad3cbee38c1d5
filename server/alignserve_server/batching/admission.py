"""Who may come in: room for a bounded number of items and bytes.

An item takes room when its call is admitted and gives it back when a lane takes it, or when its call is over.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from alignserve_server.batching.pace import Pace
from alignserve_server.errors import QueueFull

# Streams and label prompts wait for room, unary calls are refused for lack of it. Each of these two classes
# has a share that the other cannot fill. Without it those who wait would take every place that falls free,
# or unary calls would take it before anybody's turn comes.
_OWN_SHARE = 0.25
_OPEN_SHARE = 1.0 - _OWN_SHARE
_RETRY_DELAY_SECONDS = (0.02, 30.0)  # shortest and longest that callers are told to wait


@dataclass(slots=True)
class _Held:
    """What the items of one class of callers take up."""

    items: int = 0
    size_bytes: int = 0


class Room:
    """Room for items of one kind. Belongs to the event loop's thread."""

    def __init__(
        self, kind: str, *, max_items: int, max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._kind = kind  # for messages
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._pace = Pace(clock)
        self._by_calls = _Held()
        self._by_waiters = _Held()
        self._line: deque[tuple[int, int, asyncio.Future[Place]]] = deque()

    @property
    def max_waiting_items(self) -> int:
        """The most items that `wait` gets at once, however many of other callers are there."""
        return max(1, int(self._max_items * _OWN_SHARE))

    def reserve(self, items: int, size_bytes: int) -> Place:
        """Takes room at once.

        Raises:
            QueueFull: There is not enough.
        """
        if not self._fits(self._by_calls, items, size_bytes):
            raise self._full()
        return Place(self, self._by_calls, items, size_bytes)

    async def wait(self, items: int, size_bytes: int) -> Place:
        """Takes room as soon as there is enough, first come first served."""
        if not self._line and self._fits(self._by_waiters, items, size_bytes):
            return Place(self, self._by_waiters, items, size_bytes)
        turn: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        waiter = (items, size_bytes, turn)
        self._line.append(waiter)
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                turn.result().leave()  # the room came at the moment of leaving
            elif waiter in self._line:
                self._line.remove(waiter)
                self._wake()  # a smaller one behind may fit
            raise

    def check_not_crowded(self) -> None:
        """Passes if `wait` would have room for an item at once.

        Raises:
            QueueFull: There is none, or others wait already.
        """
        if self._line or not self._fits(self._by_waiters, 1, 0):
            raise self._full()

    def _enter(self, owner: _Held, items: int, size_bytes: int) -> None:
        owner.items += items
        owner.size_bytes += size_bytes
        self._pace.enter(items)

    def _free(self, owner: _Held, items: int, size_bytes: int) -> None:
        owner.items -= items
        owner.size_bytes -= size_bytes
        self._wake()

    def _leave(self, owner: _Held, items: int, items_left: int, bytes_left: int) -> None:
        self._pace.leave(items)
        self._free(owner, items_left, bytes_left)

    def _wake(self) -> None:
        """Lets in those who wait, in order, as far as there is room."""
        while self._line:
            items, size_bytes, turn = self._line[0]
            if not turn.cancelled():
                if not self._fits(self._by_waiters, items, size_bytes):
                    return
                turn.set_result(Place(self, self._by_waiters, items, size_bytes))
            self._line.popleft()

    def _fits(self, own: _Held, items: int, size_bytes: int) -> bool:
        all_items = self._by_calls.items + self._by_waiters.items
        all_bytes = self._by_calls.size_bytes + self._by_waiters.size_bytes
        if all_items == 0:
            return True  # whatever passed the request's own limits can run alone
        return _is_within(self._max_items, all_items + items, own.items + items) and _is_within(
            self._max_bytes, all_bytes + size_bytes, own.size_bytes + size_bytes
        )

    def _full(self) -> QueueFull:
        items = self._by_calls.items + self._by_waiters.items
        size_bytes = self._by_calls.size_bytes + self._by_waiters.size_bytes
        shortest, longest = _RETRY_DELAY_SECONDS
        return QueueFull(
            f"{items} {self._kind} items ({size_bytes} bytes) wait, limit {self._max_items} "
            f"({self._max_bytes} bytes), a quarter of it kept for other callers; "
            "retry after the delay given, or send less at once",
            retry_delay_seconds=min(max(self._pace.seconds_to_drain(), shortest), longest),
        )


class Place:
    """The room that a call's items take up; as a context manager, until the call is over."""

    __slots__ = ("_bytes_left", "_items", "_items_left", "_owner", "_room")

    def __init__(self, room: Room, owner: _Held, items: int, size_bytes: int) -> None:
        self._room = room
        self._owner = owner
        self._items = items
        self._items_left = items
        self._bytes_left = size_bytes
        room._enter(owner, items, size_bytes)

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def give_back(self, size_bytes: int) -> None:
        """Frees the room of one item, which a lane has taken; no effect once the call is over."""
        if self._items_left:
            self._items_left -= 1
            self._bytes_left -= size_bytes
            self._room._free(self._owner, 1, size_bytes)

    def leave(self) -> None:
        """Frees the room of the items that are left: the call is over."""
        items, size_bytes = self._items_left, self._bytes_left
        self._items_left = self._bytes_left = 0
        self._room._leave(self._owner, self._items, items, size_bytes)


def _is_within(limit: int, used: int, own: int) -> bool:
    return used <= limit * _OPEN_SHARE or (own <= limit * _OWN_SHARE and used <= limit)
