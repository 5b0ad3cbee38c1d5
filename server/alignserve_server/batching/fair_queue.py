"""Whose turn it is: callers take turns, and interactive work goes before bulk work without starving it."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

_T = TypeVar("_T")

# Under contention bulk work gets 1/16 of the share of interactive work: enough to keep it moving under any
# interactive load, and too little to burden that.
BULK_SHARE = 1 / 16


class Priority(Enum):
    """How urgent a call is, and its share of what both kinds want at once, per caller."""

    INTERACTIVE = 1.0
    BULK = BULK_SHARE

    __hash__ = object.__hash__  # Enum's is in Python, and flows are hashed several times for each item


class Flow(NamedTuple):
    """Work that is served in the order of its arrival: one caller's, of one priority."""

    caller: str
    priority: Priority


ANONYMOUS = Flow("", Priority.INTERACTIVE)


@dataclass(eq=False, slots=True)
class _Line(Generic[_T]):
    """The items of one flow, and the virtual time at which the first of them should be served."""

    pace: float  # virtual time from one item to the next
    tag: float = 0.0
    items: dict[_T, None] = field(default_factory=dict)


class FairQueue(Generic[_T]):
    """Items of several flows, in the order in which they should be served.

    Start-time fair queueing (Goyal et al., 1996), with a cost of one for each item. Between flows the item
    with the earliest tag goes first, and a flow's tag moves on by the inverse of its share with each item
    that is served. So callers that all have something here take turns, however much each of them has. A flow
    that had nothing here starts level with the others, as it has saved up nothing; a bulk one starts where
    the others will be after the many items that they have to one of its own. Items removed before service
    are not charged.

    An item that several flows want is in the line of each. The first turn that comes to it serves it, and
    only the flow whose turn that was is charged.
    """

    def __init__(self) -> None:
        self._lines: dict[Flow, _Line[_T]] = {}
        self._lines_of: dict[_T, list[_Line[_T]]] = {}
        self._now = 0.0  # virtual time: the tag of the latest item that was served
        self._purge_at = 64  # lines; a multiple of those that were needed at the last purge

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
        """Says whether any item of a flow is there."""
        return flow in self._lines and bool(self._lines[flow].items)

    def push(self, flow: Flow, item: _T) -> None:
        """Adds an item, which must be hashable by identity, to the end of a flow that does not have it yet.

        Other flows may have it: then it is one item that several want.
        """
        line = self._lines.get(flow)
        if line is None:
            self._purge()
            line = self._lines[flow] = _Line(1 / flow.priority.value)
        if not line.items:
            line.tag = max(line.tag, self._now + line.pace - 1.0)
        line.items[item] = None
        self._lines_of.setdefault(item, []).append(line)

    def leave(self, flow: Flow, item: _T) -> None:
        """Takes an item out of the line of a flow that no longer wants it; the last one removes it."""
        line = self._lines[flow]
        del line.items[item]
        self._lines_of[item].remove(line)
        if not self._lines_of[item]:
            del self._lines_of[item]
            self._reset_if_empty()

    def discard(self, item: _T) -> bool:
        """Removes an item unserved, and says whether it was there."""
        is_there = item in self._lines_of
        if is_there:
            self._remove(item)
            self._reset_if_empty()
        return is_there

    def take(self, items: Collection[_T]) -> None:
        """Removes items that are there, as served."""
        shared = {item for item in items if len(self._lines_of[item]) > 1}
        payers = self._payers(shared) if shared else {}
        for item in items:
            payer = payers.get(item) or self._lines_of[item][0]
            self._remove(item)
            self._now = max(self._now, payer.tag)
            payer.tag += payer.pace
        self._reset_if_empty()

    def pop(self) -> _T:
        """Removes the item whose turn it is, as served; there must be one."""
        item = next(iter(self))
        self.take([item])
        return item

    def _turns(self) -> Iterator[tuple[_Line[_T], _T]]:
        """Yields each item once, in the order of service, with the line whose turn serves it."""
        lines = [line for line in self._lines.values() if line.items]
        if len(lines) == 1:
            yield from ((lines[0], item) for item in lines[0].items)
            return
        # The number settles equal tags.
        heads = [(line.tag, number, line, iter(line.items)) for number, line in enumerate(lines)]
        heapq.heapify(heads)
        served: set[_T] = set()  # those that another line could come to
        while heads:
            tag, number, line, items = heads[0]
            item = next((item for item in items if item not in served), None)
            if item is None:
                heapq.heappop(heads)
                continue
            if len(self._lines_of[item]) > 1:
                served.add(item)
            yield line, item
            heapq.heapreplace(heads, (tag + line.pace, number, line, items))

    def _payers(self, shared: set[_T]) -> dict[_T, _Line[_T]]:
        """Returns the lines whose turns serve items that are in several."""
        payers: dict[_T, _Line[_T]] = {}
        for line, item in self._turns():
            if item in shared:
                payers[item] = line
                if len(payers) == len(shared):
                    break
        return payers

    def _remove(self, item: _T) -> None:
        for line in self._lines_of.pop(item):
            del line.items[item]

    def _reset_if_empty(self) -> None:
        if not self._lines_of:  # without competition no flow owes anything
            self._lines.clear()
            self._now = 0.0

    def _purge(self) -> None:
        """Forgets flows that have nothing here and owe nothing, once they are the most."""
        if len(self._lines) < self._purge_at:
            return
        self._lines = {flow: line for flow, line in self._lines.items() if line.items or line.tag > self._now}
        self._purge_at = max(64, 2 * len(self._lines))


class FairSemaphore:
    """A semaphore whose permits go to callers by turns. Belongs to the event loop."""

    def __init__(self, permits: int) -> None:
        self._permits = permits
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    async def acquire(self, flow: Flow) -> None:
        """Waits for a permit; `release` gives it back."""
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
        """Passes a permit on to the next in turn."""
        if not self._waiting:
            self._permits += 1
            return
        turn = self._waiting.pop()
        if turn.cancelled():  # its task is about to run, and finds that it has to leave
            return
        turn.set_result(None)


class FairPool:
    """Threads whose jobs take turns by caller. Belongs to the event loop."""

    def __init__(self, executor: Executor, permits: int) -> None:
        """Hands `permits` jobs at a time to the executor, so that the others can still be overtaken."""
        self._executor = executor
        self._semaphore = FairSemaphore(permits)

    async def run(self, flow: Flow, jobs: Iterable[Callable[[], _T]]) -> list[_T]:
        """Runs jobs, each when it is the caller's turn, and returns their results in order.

        If the caller leaves, or a job fails, those that have not begun never do.
        """
        futures: list[asyncio.Future[_T]] = []
        try:
            for job in jobs:
                await self._semaphore.acquire(flow)
                futures.append(self._start(job))
            return list(await asyncio.gather(*futures))
        finally:
            # Emptied: an error in one of them has this frame in its traceback, which would be a cycle.
            while futures:
                futures.pop().cancel()

    def _start(self, job: Callable[[], _T]) -> asyncio.Future[_T]:
        future = asyncio.get_running_loop().run_in_executor(self._executor, job)
        future.add_done_callback(lambda _: self._semaphore.release())
        return future
