"""Who may come in: room for a bounded number of items and bytes, shared fairly between callers.

An item takes room when its call is admitted and gives it back when a lane takes it, or when its call is over.
Whose turn it is within that room is `fair`'s; what connections hold outside of it is `rpc.shares`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from alignserve_server.batching.drain_rate import Pace
from alignserve_server.batching.fair_queue import NOBODY, FairQueue, Flow, Priority
from alignserve_server.errors import ExpiredInQueue, QueueFull, WouldMissDeadline

# Streams and label prompts wait for room, unary calls are refused for lack of it. Each of these two classes
# has a share that the other cannot fill. Without it those who wait would take every place that falls free,
# or unary calls would take it before anybody's turn comes.
_OWN_SHARE = 0.25
_OPEN_SHARE = 1.0 - _OWN_SHARE
# Most that a flow of unary calls may hold, as a multiple of what is still free to its class: dynamic
# thresholds (Choudhury and Hahne, 1998). One flow alone fills seven eighths, two fill seven fifteenths each,
# and something is always left for who comes next.
_FLOW_SHARE = 7
_RETRY_DELAY_SECONDS = (0.02, 30.0)  # shortest and longest that callers are told to wait
_SMOOTHING = 0.1  # weight of the newest call in the running estimate of how long the device takes


@dataclass(slots=True)
class _Held:
    """What items take up."""

    items: int = 0
    size_bytes: int = 0

    def add(self, items: int, size_bytes: int) -> None:
        self.items += items
        self.size_bytes += size_bytes


@dataclass(slots=True)
class _Class(_Held):
    """What a class of callers takes up, in all and by flow."""

    by_flow: dict[Flow, _Held] = field(default_factory=dict)

    def of(self, flow: Flow) -> _Held:
        return self.by_flow.get(flow) or _Held()

    def enter(self, flow: Flow, items: int, size_bytes: int) -> None:
        self.add(items, size_bytes)
        self.by_flow.setdefault(flow, _Held()).add(items, size_bytes)

    def leave(self, flow: Flow, items: int, size_bytes: int) -> None:
        self.add(-items, -size_bytes)
        held = self.by_flow[flow]
        held.add(-items, -size_bytes)
        if held.items == held.size_bytes == 0:
            del self.by_flow[flow]


@dataclass(eq=False, slots=True)
class _Waiter:
    """A call that stands in line."""

    flow: Flow
    items: int
    size_bytes: int
    turn: asyncio.Future[Place]


class Room:
    """Room for items of one kind. Belongs to the event loop's thread."""

    def __init__(
        self,
        kind: str,
        *,
        max_items: int,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[str, int], object] = lambda _, __: None,
    ) -> None:
        """Starts empty.

        Args:
            kind: Of the items, for messages.
            max_items: Most items at once.
            max_bytes: Most bytes at once.
            clock: Monotonic seconds.
            on_change: Takes a caller and how many more of its items are there, or, below 0, how many fewer.
        """
        self._kind = kind
        self._on_change = on_change
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._clock = clock
        self._pace = Pace(clock)
        self._service_seconds = 0.0  # from a lane's taking an item to the answer
        self._there = _Held()
        self._by_calls = _Class()
        self._by_waiters = _Class()
        self._line: FairQueue[_Waiter] = FairQueue()

    @property
    def max_waiting_items(self) -> int:
        """The most items that `wait` gets at once, however many of other callers are there."""
        return max(1, int(self._max_items * _OWN_SHARE))

    def reserve(
        self, items: int, size_bytes: int, flow: Flow = NOBODY, seconds_left: float | None = None
    ) -> Place:
        """Takes room at once, for a caller who waits so many seconds for the answer.

        Raises:
            QueueFull: There is not enough, or the flow has its share already.
            WouldMissDeadline: There is, but what is there already would take longer.
        """
        if not self._fits(self._by_calls, items, size_bytes) or not self._is_fair(flow, items, size_bytes):
            raise self._full()
        if seconds_left is not None:
            self._check_in_time(flow, items, seconds_left)
        return Place(self, self._by_calls, flow, items, size_bytes)

    async def wait(self, items: int, size_bytes: int, flow: Flow = NOBODY) -> Place:
        """Takes room as soon as there is enough. Callers who wait take turns."""
        if not self._line and self._fits(self._by_waiters, items, size_bytes):
            return Place(self, self._by_waiters, flow, items, size_bytes)
        waiter = _Waiter(flow, items, size_bytes, asyncio.get_running_loop().create_future())
        self._line.push(flow, waiter)
        try:
            return await waiter.turn
        except asyncio.CancelledError:
            if not waiter.turn.cancelled():
                waiter.turn.result().leave()  # the room came at the moment of leaving
            elif self._line.discard(waiter):
                self._wake()  # a smaller one behind may fit
            raise

    def check_not_crowded(self, flow: Flow = NOBODY) -> None:
        """Passes if `wait` would have room for an item of the flow soon.

        Raises:
            QueueFull: Others of the flow wait already, or it holds all it can.
        """
        holds = self._by_waiters.of(flow).items > 0
        if self._line.has(flow) or (holds and (self._line or not self._fits(self._by_waiters, 1, 0))):
            raise self._full()

    def _enter(self, owner: _Class, flow: Flow, items: int, size_bytes: int) -> None:
        self._there.add(items, size_bytes)
        owner.enter(flow, items, size_bytes)
        self._pace.enter(items)
        self._on_change(flow.caller, items)

    def _leave(self, owner: _Class, flow: Flow, items: int, size_bytes: int, *, served: bool) -> None:
        self._there.add(-items, -size_bytes)
        owner.leave(flow, items, size_bytes)
        self._pace.leave(items, served=served)
        self._on_change(flow.caller, -items)
        self._wake()

    def _learn_service(self, seconds: float) -> None:
        self._service_seconds += _SMOOTHING * (seconds - self._service_seconds)

    def _wake(self) -> None:
        """Lets in those who wait, by turns, as far as there is room."""
        while self._line:
            waiter = next(iter(self._line))
            if waiter.turn.cancelled():
                self._line.discard(waiter)
                continue
            if not self._fits(self._by_waiters, waiter.items, waiter.size_bytes):
                return
            self._line.take([waiter])
            waiter.turn.set_result(
                Place(self, self._by_waiters, waiter.flow, waiter.items, waiter.size_bytes)
            )

    def _fits(self, own: _Held, items: int, size_bytes: int) -> bool:
        there = self._there
        if there.items == 0:
            return True  # whatever passed the request's own limits can run alone
        return items <= _free(self._max_items, there.items, own.items) and size_bytes <= _free(
            self._max_bytes, there.size_bytes, own.size_bytes
        )

    def _is_fair(self, flow: Flow, items: int, size_bytes: int) -> bool:
        there, own, held = self._there, self._by_calls, self._by_calls.of(flow)
        if held.items == 0:
            return True  # who has nothing here is owed a turn
        return held.items + items <= _FLOW_SHARE * _free(
            self._max_items, there.items, own.items
        ) and held.size_bytes + size_bytes <= _FLOW_SHARE * _free(
            self._max_bytes, there.size_bytes, own.size_bytes
        )

    def _check_in_time(self, flow: Flow, items: int, seconds_left: float) -> None:
        if self._there.items == 0:
            return  # nothing is in the way
        if self._seconds_after(self._there.items, items) <= seconds_left:
            return  # even if it were the last
        seconds = self._seconds_after(self._ahead(flow, items), items)
        if seconds > seconds_left:
            raise WouldMissDeadline(
                f"an answer would take about {seconds:.3f} s and the deadline is in {seconds_left:.3f} s; "
                "retry after the delay given, or allow more time",
                retry_delay_seconds=_clamped(seconds - seconds_left),
            )

    def _seconds_after(self, ahead: int, items: int) -> float:
        # Turns come a batch at a time, so an item may wait for half a batch longer than its place says.
        return self._pace.seconds_for(ahead + items) + 1.5 * self._service_seconds

    def _ahead(self, flow: Flow, items: int) -> int:
        """Estimates how many items get their turn before the last of a call's."""
        if flow.priority is Priority.BULK:
            return self._there.items
        held = dict.fromkeys((*self._by_calls.by_flow, *self._by_waiters.by_flow), 0)
        for owner in (self._by_calls, self._by_waiters):
            for other, of_other in owner.by_flow.items():
                held[other] += of_other.items
        mine = held.pop(flow, 0)
        # Callers take turns: each other one has as many before the last of these as there are up to it.
        return mine + sum(
            min(its_items, mine + items)
            for other, its_items in held.items()
            if other.priority is Priority.INTERACTIVE
        )

    def _full(self) -> QueueFull:
        there = self._there
        return QueueFull(
            f"{there.items} {self._kind} items ({there.size_bytes} bytes) wait, limit {self._max_items} "
            f"({self._max_bytes} bytes), some of it kept for other callers; "
            "retry after the delay given, or send less at once",
            retry_delay_seconds=_clamped(self._pace.seconds_to_drain()),
        )


class Place:
    """The room that a call's items take up; as a context manager, until the call is over."""

    __slots__ = ("_bytes_left", "_flow", "_items_left", "_owner", "_room", "_taken_at")

    def __init__(self, room: Room, owner: _Class, flow: Flow, items: int, size_bytes: int) -> None:
        self._room = room
        self._owner = owner
        self._flow = flow
        self._items_left = items
        self._bytes_left = size_bytes
        self._taken_at: float | None = None  # monotonic seconds, when a lane took the latest of the items
        room._enter(owner, flow, items, size_bytes)

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        self.leave(served=not isinstance(error, (asyncio.CancelledError, ExpiredInQueue)))

    def give_back(self, size_bytes: int) -> None:
        """Frees the room of one item, which a lane has taken; no effect once the call is over."""
        if self._items_left:
            self._items_left -= 1
            self._bytes_left -= size_bytes
            self._taken_at = self._room._clock()
            self._room._leave(self._owner, self._flow, 1, size_bytes, served=True)

    def leave(self, *, served: bool = True) -> None:
        """Frees the room of the items that are left: the call is over, with or without an answer."""
        items, size_bytes = self._items_left, self._bytes_left
        self._items_left = self._bytes_left = 0
        if items:
            self._room._leave(self._owner, self._flow, items, size_bytes, served=served)
        elif served and self._taken_at is not None:
            self._room._learn_service(self._room._clock() - self._taken_at)
            self._taken_at = None


def _free(limit: int, used: int, own: int) -> float:
    """Returns how much a class may add, of which there is `used` in all and `own` of the class."""
    return max(limit * _OPEN_SHARE - used, min(limit * _OWN_SHARE - own, limit - used))


def _clamped(seconds: float) -> float:
    shortest, longest = _RETRY_DELAY_SECONDS
    return min(max(seconds, shortest), longest)
