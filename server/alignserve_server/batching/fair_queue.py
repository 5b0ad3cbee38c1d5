"""Fair queueing: callers take turns, and interactive work goes before bulk work without starving it."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, NamedTuple, TypeAlias, TypeVar

_T = TypeVar("_T")

# Under contention bulk work gets 1/16 of the share of interactive work: enough to keep it moving under any
# interactive load, too little to slow that load down.
BULK_SHARE = 1 / 16


class Priority(Enum):
    """How urgent a call is. The value is its relative share per caller under contention."""

    INTERACTIVE = 1.0
    BULK = BULK_SHARE

    __hash__ = object.__hash__  # Enum's is in Python, and flows are hashed several times for each item


class Flow(NamedTuple):
    """Work that is served in order of arrival: that of one caller at one priority."""

    caller: str
    priority: Priority


ANONYMOUS = Flow("", Priority.INTERACTIVE)


@dataclass(eq=False, slots=True)
class _Line(Generic[_T]):
    """The items of one flow, and the virtual time at which the first should be served."""

    pace: float  # virtual time from one item to the next
    tag: float = 0.0
    items: dict[_T, None] = field(default_factory=dict)


_Lines: TypeAlias = tuple[_Line[_T], ...]  # one object for all items that were added together


class FairQueue(Generic[_T]):
    """Items of several flows, in the order in which they should be served.

    Implements start-time fair queueing (Goyal et al., 1996) with a cost of one per item. Among flows, the
    item with the earliest tag goes first. Each served item advances its flow's tag by the inverse of the
    flow's share. So callers with items take turns, however many items each of them has. A flow that was empty
    starts level with the others, since idle time earns no credit. A bulk flow starts behind the others, by
    the number of items that they get for each of its own. Items removed before service are not charged.

    An item that several flows want is in the line of each. It is served at the first turn that reaches it,
    and only the flow that had that turn is charged.
    """

    def __init__(self) -> None:
        self._lines: dict[Flow, _Line[_T]] = {}
        self._lines_of: dict[_T, _Lines[_T]] = {}
        self._now = 0.0  # virtual time: the tag of the latest item that was served
        self._purge_at = 64  # number of lines; twice those that the last purge kept, at least 64

    def __len__(self) -> int:
        return len(self._lines_of)

    def __contains__(self, item: _T) -> bool:
        return item in self._lines_of

    def __iter__(self) -> Iterator[_T]:
        return (item for _, item in self._turns())

    def heads(self) -> Iterator[_T]:
        """Yields the first item of each flow."""
        for line in self._lines.values():
            if line.items:
                yield next(iter(line.items))

    def has(self, flow: Flow) -> bool:
        """Returns whether the flow has any items."""
        return flow in self._lines and bool(self._lines[flow].items)

    def push(self, flow: Flow, item: _T) -> None:
        """Adds an item, hashable by identity, to the end of a flow that does not have it yet.

        Other flows may already have it: they then share the item.
        """
        line = self._line(flow)
        line.items[item] = None
        self._lines_of[item] = (*self._lines_of.get(item, ()), line)

    def extend(self, flow: Flow, items: Collection[_T]) -> None:
        """Adds items that no flow has, in order, to the end of a flow."""
        line = self._line(flow)
        line.items.update(dict.fromkeys(items))
        self._lines_of.update(dict.fromkeys(items, (line,)))

    def leave(self, flow: Flow, item: _T) -> None:
        """Removes an item from the line of a flow; the item is gone once no flow wants it."""
        line = self._lines[flow]
        del line.items[item]
        others = tuple(other for other in self._lines_of[item] if other is not line)
        if others:
            self._lines_of[item] = others
        else:
            del self._lines_of[item]
            self._reset_if_empty()

    def isdisjoint(self, items: Iterable[_T]) -> bool:
        """Returns whether none of the items is present."""
        return not self._lines_of or self._lines_of.keys().isdisjoint(items)

    def discard(self, item: _T) -> bool:
        """Removes an item unserved; returns whether it was present."""
        is_there = item in self._lines_of
        if is_there:
            self._remove(item)
            self._reset_if_empty()
        return is_there

    def take(self, items: Collection[_T]) -> None:
        """Removes items, all of which must be present, as served."""
        shared = {item for item in items if len(self._lines_of[item]) > 1}
        payers = self._payers(shared) if shared else {}
        now = self._now
        for item in items:
            lines = self._lines_of.pop(item)
            payer = payers.get(item) or lines[0]
            for line in lines:
                del line.items[item]
            if payer.tag > now:
                now = payer.tag
            payer.tag += payer.pace
        self._now = now
        self._reset_if_empty()

    def pop(self) -> _T:
        """Removes the next item as served and returns it; the queue must not be empty."""
        item = next(iter(self))
        self.take([item])
        return item

    def _turns(self) -> Iterator[tuple[_Line[_T], _T]]:
        """Yields each item once, in the order of service, with the line whose turn serves it."""
        lines = [line for line in self._lines.values() if line.items]
        if len(lines) == 1:
            yield from ((lines[0], item) for item in lines[0].items)
            return
        # The number breaks ties between equal tags.
        heads = [(line.tag, number, line, iter(line.items)) for number, line in enumerate(lines)]
        heapq.heapify(heads)
        served: set[_T] = set()  # shared items, which another line could reach again
        while heads:
            tag, number, line, items = heads[0]
            for item in items:
                if item not in served:
                    break
            else:
                heapq.heappop(heads)
                continue
            if len(self._lines_of[item]) > 1:
                served.add(item)
            yield line, item
            heapq.heapreplace(heads, (tag + line.pace, number, line, items))

    def _payers(self, shared: set[_T]) -> dict[_T, _Line[_T]]:
        """Returns the line whose turn serves each shared item."""
        payers: dict[_T, _Line[_T]] = {}
        for line, item in self._turns():
            if item in shared:
                payers[item] = line
                if len(payers) == len(shared):
                    break
        return payers

    def _line(self, flow: Flow) -> _Line[_T]:
        """Returns a flow's line, ready for a new item."""
        line = self._lines.get(flow)
        if line is None:
            self._purge()
            line = self._lines[flow] = _Line(1 / flow.priority.value)
        if not line.items:
            line.tag = max(line.tag, self._now + line.pace - 1.0)
        return line

    def _remove(self, item: _T) -> None:
        for line in self._lines_of.pop(item):
            del line.items[item]

    def _reset_if_empty(self) -> None:
        if not self._lines_of:  # no flow owes anything once there is no competition
            self._lines.clear()
            self._now = 0.0

    def _purge(self) -> None:
        """Forgets flows that are empty and owe nothing, once there may be many of them."""
        if len(self._lines) < self._purge_at:
            return
        self._lines = {flow: line for flow, line in self._lines.items() if line.items or line.tag > self._now}
        self._purge_at = max(64, 2 * len(self._lines))


class FairSemaphore:
    """A semaphore that grants permits to callers in turn. Use only on the event loop's thread."""

    def __init__(self, permits: int) -> None:
        self._permits = permits
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    async def acquire(self, flow: Flow) -> None:
        """Waits for a permit; `release` returns it."""
        if self._permits > 0:
            self._permits -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.push(flow, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not self._waiting.discard(turn):
                self.release()  # granted while being cancelled: give it back
            raise

    def release(self) -> None:
        """Returns a permit and grants it to the next in turn."""
        if not self._waiting:
            self._permits += 1
            return
        turn = self._waiting.pop()
        if turn.cancelled():  # its task is about to run and will pass the permit on
            return
        turn.set_result(None)


class FairPool:
    """A thread pool in which callers take turns. Use only on the event loop's thread."""

    def __init__(self, executor: Executor, permits: int) -> None:
        """Gives the executor at most `permits` jobs at a time, so that the others can still be overtaken."""
        self._executor = executor
        self._semaphore = FairSemaphore(permits)

    async def run(self, flow: Flow, jobs: Iterable[Callable[[], _T]]) -> list[_T]:
        """Runs jobs, each at the caller's turn, and returns their results in order.

        If the caller cancels or a job fails, jobs that have not started never run.
        """
        futures: list[asyncio.Future[_T]] = []
        try:
            for job in jobs:
                await self._semaphore.acquire(flow)
                futures.append(self._start(job))
            if len(futures) == 1:
                return [await futures[0]]  # the usual case; `gather` would cost more
            return list(await asyncio.gather(*futures))
        finally:
            # A future's error has this frame in its traceback: keeping the futures would make a cycle.
            while futures:
                futures.pop().cancel()

    def _start(self, job: Callable[[], _T]) -> asyncio.Future[_T]:
        future = asyncio.get_running_loop().run_in_executor(self._executor, job)
        future.add_done_callback(lambda _: self._semaphore.release())
        return future
