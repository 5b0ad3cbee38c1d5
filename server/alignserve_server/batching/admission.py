"""Admission control: a bounded budget of items and bytes, shared fairly between callers.

An item takes room when its call is admitted and frees it when a lane takes it, or when its call is over.
Whose turn it is within that room is for `fair_queue` to decide; `rpc.shares` bounds what connections hold
outside of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from alignserve_server.batching.drain_rate import DrainRate
from alignserve_server.batching.fair_queue import ANONYMOUS, FairQueue, Flow, Priority
from alignserve_server.errors import ExpiredInQueue, QueueFull, WouldMissDeadline

# Streams and label prompts wait for room, unary calls are refused for lack of it. Each of these two classes
# has a share that the other cannot fill. Without it those that wait would take all room as it is freed, or
# unary calls would take it before any of the others gets its turn.
_OWN_SHARE = 0.25
_OPEN_SHARE = 1.0 - _OWN_SHARE
# Maximum that a flow of unary calls may hold, as a multiple of what is still free to its class: dynamic
# thresholds (Choudhury and Hahne, 1998). A single flow fills seven eighths, two fill seven fifteenths each,
# and something is always left for the next to come.
_FLOW_SHARE = 7
_RETRY_DELAY_SECONDS = (0.02, 30.0)  # shortest and longest that callers are told to wait
_SMOOTHING = 0.1  # weight of the newest call in the running estimate of how long the device takes


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much one queue may hold."""

    max_items: int
    max_bytes: int

    @property
    def max_waiting_items(self) -> int:
        """The most items that `AdmissionController.wait` grants at once, however many others are there."""
        return max(1, int(self.max_items * _OWN_SHARE))


@dataclass(slots=True)
class _Usage:
    """What items take up."""

    items: int = 0
    size_bytes: int = 0

    def add(self, items: int, size_bytes: int) -> None:
        self.items += items
        self.size_bytes += size_bytes


@dataclass(slots=True)
class _CallerClass(_Usage):
    """What a class of callers takes up, in all and by flow."""

    by_flow: dict[Flow, _Usage] = field(default_factory=dict)

    def of(self, flow: Flow) -> _Usage:
        return self.by_flow.get(flow) or _Usage()

    def enter(self, flow: Flow, items: int, size_bytes: int) -> None:
        self.add(items, size_bytes)
        self.by_flow.setdefault(flow, _Usage()).add(items, size_bytes)

    def leave(self, flow: Flow, items: int, size_bytes: int) -> None:
        self.add(-items, -size_bytes)
        usage = self.by_flow[flow]
        usage.add(-items, -size_bytes)
        if usage.items == usage.size_bytes == 0:
            del self.by_flow[flow]


@dataclass(eq=False, slots=True)
class _Waiter:
    """A call that waits for room."""

    flow: Flow
    items: int
    size_bytes: int
    turn: asyncio.Future[Reservation]


class AdmissionController:
    """Grants room to items of one kind. Belongs to the event loop's thread."""

    def __init__(
        self,
        kind: str,
        limits: QueueLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[str, int], object] = lambda _, __: None,
    ) -> None:
        """Starts empty.

        Args:
            kind: Of the items, for messages.
            limits: How much there may be at once.
            clock: Monotonic seconds.
            on_change: Takes a caller and how many more of its items are there, or, below 0, how many fewer.
        """
        self._kind = kind
        self._limits = limits
        self._on_change = on_change
        self._clock = clock
        self._drain_rate = DrainRate(clock)
        self._service_seconds = 0.0  # from a lane's taking an item to the answer
        self._total = _Usage()
        self._unary = _CallerClass()
        self._streams = _CallerClass()
        self._waiting: FairQueue[_Waiter] = FairQueue()

    def reserve(
        self, items: int, size_bytes: int, flow: Flow = ANONYMOUS, seconds_left: float | None = None
    ) -> Reservation:
        """Takes room at once, for a caller who waits so many seconds for the answer.

        Raises:
            QueueFull: There is not enough, or the flow has its share already.
            WouldMissDeadline: There is, but what is there already would take longer.
        """
        if not self._fits(self._unary, items, size_bytes) or not self._is_fair(flow, items, size_bytes):
            raise self._full()
        if seconds_left is not None:
            self._check_in_time(flow, items, seconds_left)
        return Reservation(self, self._unary, flow, items, size_bytes)

    async def wait(self, items: int, size_bytes: int, flow: Flow = ANONYMOUS) -> Reservation:
        """Takes room as soon as there is enough. Callers that wait take turns."""
        if not self._waiting and self._fits(self._streams, items, size_bytes):
            return Reservation(self, self._streams, flow, items, size_bytes)
        waiter = _Waiter(flow, items, size_bytes, asyncio.get_running_loop().create_future())
        self._waiting.push(flow, waiter)
        try:
            return await waiter.turn
        except asyncio.CancelledError:
            if not waiter.turn.cancelled():
                waiter.turn.result().close()  # granted while being cancelled: give it back
            elif self._waiting.discard(waiter):
                self._wake()  # a smaller one behind may fit
            raise

    def check_not_crowded(self, flow: Flow = ANONYMOUS) -> None:
        """Passes if `wait` would have room for an item of the flow soon.

        Raises:
            QueueFull: Others of the flow wait already, or it holds all it can.
        """
        holds = self._streams.of(flow).items > 0
        if self._waiting.has(flow) or (holds and (self._waiting or not self._fits(self._streams, 1, 0))):
            raise self._full()

    def _enter(self, owner: _CallerClass, flow: Flow, items: int, size_bytes: int) -> None:
        self._total.add(items, size_bytes)
        owner.enter(flow, items, size_bytes)
        self._drain_rate.enter(items)
        self._on_change(flow.caller, items)

    def _leave(self, owner: _CallerClass, flow: Flow, items: int, size_bytes: int, *, served: bool) -> None:
        self._total.add(-items, -size_bytes)
        owner.leave(flow, items, size_bytes)
        self._drain_rate.leave(items, served=served)
        self._on_change(flow.caller, -items)
        self._wake()

    def _learn_service(self, seconds: float) -> None:
        self._service_seconds += _SMOOTHING * (seconds - self._service_seconds)

    def _wake(self) -> None:
        """Admits callers that wait, by turns, as far as there is room."""
        while self._waiting:
            waiter = next(iter(self._waiting))
            if waiter.turn.cancelled():
                self._waiting.discard(waiter)
                continue
            if not self._fits(self._streams, waiter.items, waiter.size_bytes):
                return
            self._waiting.take([waiter])
            waiter.turn.set_result(
                Reservation(self, self._streams, waiter.flow, waiter.items, waiter.size_bytes)
            )

    def _fits(self, own: _Usage, items: int, size_bytes: int) -> bool:
        total, limits = self._total, self._limits
        if total.items == 0:
            return True  # whatever passed the request's own limits can run alone
        return items <= _free(limits.max_items, total.items, own.items) and size_bytes <= _free(
            limits.max_bytes, total.size_bytes, own.size_bytes
        )

    def _is_fair(self, flow: Flow, items: int, size_bytes: int) -> bool:
        own, held = self._unary, self._unary.of(flow)
        if held.items == 0:
            return True  # a flow that has nothing here is owed a turn
        return (
            held.items + items <= _FLOW_SHARE * self._free_items(own)
            and held.size_bytes + size_bytes <= _FLOW_SHARE * self._free_bytes(own)
        )  # fmt: skip

    def _free_items(self, own: _Usage) -> float:
        return _free(self._limits.max_items, self._total.items, own.items)

    def _free_bytes(self, own: _Usage) -> float:
        return _free(self._limits.max_bytes, self._total.size_bytes, own.size_bytes)

    def _check_in_time(self, flow: Flow, items: int, seconds_left: float) -> None:
        if self._total.items == 0:
            return  # nothing is in the way
        if self._seconds_after(self._total.items, items) <= seconds_left:
            return  # even if it were the last
        seconds = self._seconds_after(self._ahead(flow, items), items)
        if seconds > seconds_left:
            raise WouldMissDeadline(
                f"an answer would take about {seconds:.3f} s and the deadline is in {seconds_left:.3f} s; "
                "retry after the delay given, or allow more time",
                retry_delay_seconds=_clamped(seconds - seconds_left),
            )

    def _seconds_after(self, ahead: int, items: int) -> float:
        # Turns come a batch at a time, so an item may wait half a batch longer than its position says.
        return self._drain_rate.seconds_for(ahead + items) + 1.5 * self._service_seconds

    def _ahead(self, flow: Flow, items: int) -> int:
        """Estimates how many items get their turn before the last of a call's."""
        if flow.priority is Priority.BULK:
            return self._total.items
        held = dict.fromkeys((*self._unary.by_flow, *self._streams.by_flow), 0)
        for owner in (self._unary, self._streams):
            for other, usage in owner.by_flow.items():
                held[other] += usage.items
        mine = held.pop(flow, 0)
        # Callers take turns: each other one has as many before the last of these as there are up to it.
        return mine + sum(
            min(its_items, mine + items)
            for other, its_items in held.items()
            if other.priority is Priority.INTERACTIVE
        )

    def _full(self) -> QueueFull:
        return QueueFull(
            f"{self._total.items} {self._kind} items ({self._total.size_bytes} bytes) wait, limit "
            f"{self._limits.max_items} ({self._limits.max_bytes} bytes), some of it kept for other callers; "
            "retry after the delay given, or send less at once",
            retry_delay_seconds=_clamped(self._drain_rate.seconds_to_drain()),
        )


class Reservation:
    """The room that a call's items take up; as a context manager, until the call is over."""

    __slots__ = ("_bytes_left", "_controller", "_flow", "_items_left", "_owner", "_released_at")

    def __init__(
        self, controller: AdmissionController, owner: _CallerClass, flow: Flow, items: int, size_bytes: int
    ) -> None:
        self._controller = controller
        self._owner = owner
        self._flow = flow
        self._items_left = items
        self._bytes_left = size_bytes
        self._released_at: float | None = None  # monotonic seconds, when a lane took the latest of the items
        controller._enter(owner, flow, items, size_bytes)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        self.close(served=is_served(error))

    def slot(self, size_bytes: int) -> ReservedSlot:
        """Returns the room of one of the items, to be released on its own."""
        return ReservedSlot(self, size_bytes)

    def close(self, *, served: bool = True) -> None:
        """Frees what no slot has freed: the call is over, with or without an answer."""
        items, size_bytes = self._items_left, self._bytes_left
        self._items_left = self._bytes_left = 0
        if items:
            self._controller._leave(self._owner, self._flow, items, size_bytes, served=served)
        elif served and self._released_at is not None:
            self._controller._learn_service(self._controller._clock() - self._released_at)
            self._released_at = None

    def _release(self, size_bytes: int) -> None:
        if self._items_left:
            self._items_left -= 1
            self._bytes_left -= size_bytes
            self._released_at = self._controller._clock()
            self._controller._leave(self._owner, self._flow, 1, size_bytes, served=True)


class ReservedSlot:
    """The room of one item."""

    __slots__ = ("_reservation", "_size_bytes")

    def __init__(self, reservation: Reservation, size_bytes: int) -> None:
        self._reservation: Reservation | None = reservation
        self._size_bytes = size_bytes

    def release(self) -> None:
        """Frees the room, since a lane has taken the item; no effect if it is free already."""
        if self._reservation is not None:
            self._reservation._release(self._size_bytes)
            self._reservation = None


def is_served(error: BaseException | None) -> bool:
    """Says whether a call that ended with an error, or without, had its turn."""
    return not isinstance(error, (asyncio.CancelledError, ExpiredInQueue))


def _free(limit: int, used: int, own: int) -> float:
    """Returns how much a class may add, of which there is `used` in all and `own` of the class."""
    return max(limit * _OPEN_SHARE - used, min(limit * _OWN_SHARE - own, limit - used))


def _clamped(seconds: float) -> float:
    shortest, longest = _RETRY_DELAY_SECONDS
    return min(max(seconds, shortest), longest)
