"""Admission control: a bounded budget of items and bytes, shared fairly between callers.

An item takes room when its call is admitted. The room is freed when a lane takes the item or when the call
ends. `fair_queue` decides whose turn it is within that room; `rpc.shares` bounds what connections hold
outside it.
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

# Streams and label prompts wait for room; unary calls are refused if there is none. Each of these two classes
# has a share that the other cannot fill. Without it, waiting work would take all room as soon as it is freed,
# or unary calls would take it before any waiting work gets a turn.
_OWN_SHARE = 0.25
_OPEN_SHARE = 1.0 - _OWN_SHARE
# Maximum that a flow of unary calls may hold, as a multiple of the room still free to its class: dynamic
# thresholds (Choudhury and Hahne, 1998). One flow can fill seven eighths, two can fill seven fifteenths each,
# and some room always remains for the next flow.
_FLOW_SHARE = 7
_RETRY_DELAY_SECONDS = (0.02, 30.0)  # shortest and longest retry delay given to callers
_SMOOTHING = 0.1  # weight of the newest call in the running estimate of the service time


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Limits of one queue."""

    max_items: int
    max_bytes: int

    @property
    def max_waiting_items(self) -> int:
        """The number of items that `AdmissionController.wait` can grant at once, even in a full queue."""
        return max(1, int(self.max_items * _OWN_SHARE))


@dataclass(slots=True)
class _Usage:
    """Items and their bytes."""

    items: int = 0
    size_bytes: int = 0


_NO_USAGE = _Usage()


@dataclass(slots=True)
class _CallerClass(_Usage):
    """The usage of a class of callers, in total and by flow."""

    by_flow: dict[Flow, _Usage] = field(default_factory=dict)

    def of(self, flow: Flow) -> _Usage:
        return self.by_flow.get(flow, _NO_USAGE)

    def enter(self, flow: Flow, items: int, size_bytes: int) -> None:
        self.items += items
        self.size_bytes += size_bytes
        usage = self.by_flow.get(flow)
        if usage is None:
            usage = self.by_flow[flow] = _Usage()
        usage.items += items
        usage.size_bytes += size_bytes

    def leave(self, flow: Flow, items: int, size_bytes: int) -> None:
        self.items -= items
        self.size_bytes -= size_bytes
        usage = self.by_flow[flow]
        usage.items -= items
        usage.size_bytes -= size_bytes
        if usage.items == usage.size_bytes == 0:
            del self.by_flow[flow]


class AdmissionController:
    """Grants room to items of one kind. Use only on the event loop's thread."""

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
            kind: Name of the kind of items, for messages.
            limits: Maximum items and bytes at once.
            clock: Monotonic seconds.
            on_change: Called with a caller and the change in the number of its items.
        """
        self._kind = kind
        self._limits = limits
        self._on_change = on_change
        self._clock = clock
        self._drain_rate = DrainRate(clock)
        self._service_seconds = 0.0  # from when a lane takes an item to the answer
        self._total = _Usage()
        self._unary = _CallerClass()
        self._streams = _CallerClass()
        self._waiting: FairQueue[Reservation] = FairQueue()

    def reserve(
        self, items: int, size_bytes: int, flow: Flow = ANONYMOUS, seconds_left: float | None = None
    ) -> Reservation:
        """Takes room at once, for a caller that waits at most `seconds_left` for the answer.

        Raises:
            QueueFull: There is not enough room, or the flow already has its share.
            WouldMissDeadline: There is room, but the answer would come too late.
        """
        if not self._has_share(flow, items, size_bytes):
            raise self._full()
        if seconds_left is not None:
            self._check_in_time(flow, items, seconds_left)
        reservation = Reservation(self, self._unary, flow, items, size_bytes)
        reservation._enter()
        return reservation

    def ask(self, items: int, size_bytes: int, flow: Flow = ANONYMOUS) -> Reservation:
        """Takes room if there is enough; if not, the reservation waits for its `turn`. Callers take turns."""
        reservation = Reservation(self, self._streams, flow, items, size_bytes)
        if not self._waiting and self._fits(self._streams, items, size_bytes):
            reservation._enter()
        else:
            reservation.turn = asyncio.get_running_loop().create_future()
            self._waiting.push(flow, reservation)
        return reservation

    async def wait(self, items: int, size_bytes: int, flow: Flow = ANONYMOUS) -> Reservation:
        """Waits until there is enough room, then takes it; see `ask`."""
        reservation = self.ask(items, size_bytes, flow)
        if reservation.turn is not None:
            try:
                await reservation.turn
            except asyncio.CancelledError:
                reservation.close(served=False)
                raise
        return reservation

    def check_not_crowded(self, flow: Flow = ANONYMOUS) -> None:
        """Returns if `wait` would soon grant the flow room for an item.

        Raises:
            QueueFull: Other calls of the flow already wait, or the flow holds all it can.
        """
        holds = self._streams.of(flow).items > 0
        if self._waiting.has(flow) or (holds and (self._waiting or not self._fits(self._streams, 1, 0))):
            raise self._full()

    def _enter(self, owner: _CallerClass, flow: Flow, items: int, size_bytes: int) -> None:
        self._total.items += items
        self._total.size_bytes += size_bytes
        owner.enter(flow, items, size_bytes)
        self._drain_rate.enter(items)
        self._on_change(flow.caller, items)

    def _leave(self, owner: _CallerClass, flow: Flow, items: int, size_bytes: int, *, served: bool) -> None:
        self._total.items -= items
        self._total.size_bytes -= size_bytes
        owner.leave(flow, items, size_bytes)
        self._drain_rate.leave(items, served=served)
        self._on_change(flow.caller, -items)
        if self._waiting:
            self._wake()

    def _stop_waiting(self, reservation: Reservation) -> None:
        if self._waiting.discard(reservation):
            self._wake()  # a smaller call behind it may fit

    def _learn_service(self, seconds: float) -> None:
        self._service_seconds += _SMOOTHING * (seconds - self._service_seconds)

    def _wake(self) -> None:
        """Admits waiting calls in turn while there is room."""
        while self._waiting:
            reservation = next(iter(self._waiting))
            if reservation.is_given_up:
                self._waiting.discard(reservation)
                continue
            if not self._fits(self._streams, reservation.items_left, reservation.bytes_left):
                return
            self._waiting.take([reservation])
            reservation._enter()

    def _fits(self, own: _Usage, items: int, size_bytes: int) -> bool:
        if self._total.items == 0:
            return True  # a request within its own limits can always run by itself
        return items <= self._free_items(own) and size_bytes <= self._free_bytes(own)

    def _has_share(self, flow: Flow, items: int, size_bytes: int) -> bool:
        """Returns whether a flow of unary calls may take that much more."""
        if self._total.items == 0:
            return True
        free_items, free_bytes = self._free_items(self._unary), self._free_bytes(self._unary)
        if items > free_items or size_bytes > free_bytes:
            return False
        held = self._unary.of(flow)
        if held.items == 0:
            return True  # a flow that holds nothing is owed a turn
        return (
            held.items + items <= _FLOW_SHARE * free_items
            and held.size_bytes + size_bytes <= _FLOW_SHARE * free_bytes
        )  # fmt: skip

    def _free_items(self, own: _Usage) -> float:
        return _free(self._limits.max_items, self._total.items, own.items)

    def _free_bytes(self, own: _Usage) -> float:
        return _free(self._limits.max_bytes, self._total.size_bytes, own.size_bytes)

    def _check_in_time(self, flow: Flow, items: int, seconds_left: float) -> None:
        if self._total.items == 0:
            return  # nothing is ahead
        if self._seconds_after(self._total.items, items) <= seconds_left:
            return  # in time even if served last
        seconds = self._seconds_after(self._ahead(flow, items), items)
        if seconds > seconds_left:
            raise WouldMissDeadline(
                f"the answer would take about {seconds:.3f} s, but the deadline is in {seconds_left:.3f} s; "
                "retry after the delay given, or allow more time",
                retry_delay_seconds=_clamped(seconds - seconds_left),
            )

    def _seconds_after(self, ahead: int, items: int) -> float:
        # Turns come a batch at a time, so an item may wait half a batch longer than its position suggests.
        return self._drain_rate.seconds_for(ahead + items) + 1.5 * self._service_seconds

    def _ahead(self, flow: Flow, items: int) -> int:
        """Estimates how many items are served before the last item of a call."""
        if flow.priority is Priority.BULK:
            return self._total.items
        held = dict.fromkeys((*self._unary.by_flow, *self._streams.by_flow), 0)
        for owner in (self._unary, self._streams):
            for other, usage in owner.by_flow.items():
                held[other] += usage.items
        mine = held.pop(flow, 0)
        # Callers take turns: each other flow has at most as many before this call's last item as this flow.
        return mine + sum(
            min(its_items, mine + items)
            for other, its_items in held.items()
            if other.priority is Priority.INTERACTIVE
        )

    def _full(self) -> QueueFull:
        return QueueFull(
            f"{self._total.items} {self._kind} items ({self._total.size_bytes} bytes) wait, limit "
            f"{self._limits.max_items} ({self._limits.max_bytes} bytes), part of it kept for other callers; "
            "retry after the delay given, or send fewer items at once",
            retry_delay_seconds=_clamped(self._drain_rate.seconds_to_drain()),
        )


class Reservation:
    """The room that a call's items take up. As a context manager, frees it when the call ends."""

    __slots__ = (
        "_controller",
        "_flow",
        "_has_room",
        "_owner",
        "_released_at",
        "bytes_left",
        "items_left",
        "turn",
    )

    def __init__(
        self, controller: AdmissionController, owner: _CallerClass, flow: Flow, items: int, size_bytes: int
    ) -> None:
        """Has no room yet."""
        self._controller = controller
        self._owner = owner
        self._flow = flow
        self._has_room = False
        self._released_at: float | None = None  # monotonic seconds, when a lane took the latest item
        self.items_left = items
        self.bytes_left = size_bytes
        self.turn: asyncio.Future[None] | None = None  # done once it has room, if it had to wait

    @property
    def is_given_up(self) -> bool:
        """Whether the caller that waits has been cancelled; its task is about to close this."""
        return self.turn is not None and self.turn.cancelled()

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        self.close(served=is_served(error))

    def release(self, items: int, size_bytes: int) -> None:
        """Frees the room of items that a lane has taken; no effect if the call has ended."""
        if self.items_left:
            self.items_left -= items
            self.bytes_left -= size_bytes
            self._released_at = self._controller._clock()
            self._controller._leave(self._owner, self._flow, items, size_bytes, served=True)

    def close(self, *, served: bool = True) -> None:
        """Frees the room that is left, or stops waiting: the call has ended, with or without an answer."""
        items, size_bytes = self.items_left, self.bytes_left
        self.items_left = self.bytes_left = 0
        if not self._has_room:
            self._controller._stop_waiting(self)
        elif items:
            self._controller._leave(self._owner, self._flow, items, size_bytes, served=served)
        elif served and self._released_at is not None:
            self._controller._learn_service(self._controller._clock() - self._released_at)
            self._released_at = None

    def _enter(self) -> None:
        self._has_room = True
        self._controller._enter(self._owner, self._flow, self.items_left, self.bytes_left)
        if self.turn is not None:
            self.turn.set_result(None)


def is_served(error: BaseException | None) -> bool:
    """Returns whether a call that ended with this error, or with none, had its turn."""
    return not isinstance(error, (asyncio.CancelledError, ExpiredInQueue))


def _free(limit: int, used: int, own: int) -> float:
    """Returns how much a class may add, given the total in use and the class's own part of it."""
    return max(limit * _OPEN_SHARE - used, min(limit * _OWN_SHARE - own, limit - used))


def _clamped(seconds: float) -> float:
    shortest, longest = _RETRY_DELAY_SECONDS
    return min(max(seconds, shortest), longest)
