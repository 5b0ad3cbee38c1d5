"""Whose turn it is: callers take turns, and interactive work goes before bulk work without starving it."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

_T = TypeVar("_T")

# Of what cannot wait and what can, while both are there: a sixteenth as much of the latter. It is what keeps
# bulk work moving under any interactive load, and small enough to be no burden to that.
BULK_SHARE = 1 / 16


class Priority(Enum):
    """How urgent a call is, and its share of what both kinds want at once, per caller."""

    INTERACTIVE = 1.0
    BULK = BULK_SHARE


class Flow(NamedTuple):
    """Work that is served in the order of its arrival: one caller's, of one priority."""

    caller: str
    priority: Priority


NOBODY = Flow("", Priority.INTERACTIVE)


@dataclass(eq=False, slots=True)
class _Line(Generic[_T]):
    """The items of one flow, and the virtual time at which the first of them should be served."""

    pace: float  # virtual time from one item to the next
    tag: float = 0.0
    items: dict[_T, None] = field(default_factory=dict)

    def tagged(self, number: int) -> Iterator[tuple[float, int, _T]]:
        """Yields the items with their tags; `number` settles equal ones."""
        tag = self.tag
        for item in self.items:
            yield tag, number, item
            tag += self.pace


class FairQueue(Generic[_T]):
    """Items of several flows, in the order in which they should be served.

    Start-time fair queueing (Goyal et al., 1996), with a cost of one for each item. Between flows the item
    with the earliest tag goes first, and a flow's tag moves on by the inverse of its share with each item
    that is served. So callers that all have something here take turns, however much each of them has. A flow
    that had nothing here starts level with the others, as it has saved up nothing; a bulk one starts where
    the others will be after the many items that they have to one of its own. Who leaves unserved was never
    charged.
    """

    def __init__(self) -> None:
        self._lines: dict[Flow, _Line[_T]] = {}
        self._line_of: dict[_T, _Line[_T]] = {}
        self._now = 0.0  # virtual time: the tag of the latest item that was served
        self._purge_at = 64  # lines; a multiple of those that were needed at the last purge

    def __len__(self) -> int:
        return len(self._line_of)

    def __contains__(self, item: _T) -> bool:
        return item in self._line_of

    def __iter__(self) -> Iterator[_T]:
        lines = [line for line in self._lines.values() if line.items]
        if len(lines) == 1:
            yield from lines[0].items
            return
        for _, _, item in heapq.merge(*(line.tagged(number) for number, line in enumerate(lines))):
            yield item

    def heads(self) -> Iterator[_T]:
        """Yields the first item of each flow."""
        for line in self._lines.values():
            if line.items:
                yield next(iter(line.items))

    def has(self, flow: Flow) -> bool:
        """Says whether any item of a flow is there."""
        return flow in self._lines and bool(self._lines[flow].items)

    def push(self, flow: Flow, item: _T) -> None:
        """Adds an item, which must be hashable by identity, to the end of its flow."""
        line = self._lines.get(flow)
        if line is None:
            self._purge()
            line = self._lines[flow] = _Line(1 / flow.priority.value)
        if not line.items:
            line.tag = max(line.tag, self._now + line.pace - 1.0)
        line.items[item] = None
        self._line_of[item] = line

    def discard(self, item: _T) -> bool:
        """Removes an item unserved, and says whether it was there."""
        line = self._line_of.pop(item, None)
        if line is None:
            return False
        del line.items[item]
        self._reset_if_empty()
        return True

    def take(self, item: _T) -> None:
        """Removes an item that is there, as served."""
        line = self._line_of.pop(item)
        del line.items[item]
        self._now = max(self._now, line.tag)
        line.tag += line.pace
        self._reset_if_empty()

    def _reset_if_empty(self) -> None:
        if not self._line_of:  # nobody competes, so nobody owes anything
            self._lines.clear()
            self._now = 0.0

    def _purge(self) -> None:
        """Forgets flows that have nothing here and owe nothing, once they are the most."""
        if len(self._lines) < self._purge_at:
            return
        self._lines = {flow: line for flow, line in self._lines.items() if line.items or line.tag > self._now}
        self._purge_at = max(64, 2 * len(self._lines))


class FairGate:
    """Lets a number of jobs run at a time, and those who wait in by turns. Belongs to the event loop."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    async def enter(self, flow: Flow) -> None:
        """Waits for a place; `leave` gives it back."""
        if self._places > 0:
            self._places -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.push(flow, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not self._waiting.discard(turn):
                self.leave()  # the turn came at the moment of leaving
            raise

    def leave(self) -> None:
        """Gives a place to whoever is next."""
        if not self._waiting:
            self._places += 1
            return
        turn = next(iter(self._waiting))
        self._waiting.take(turn)
        if turn.cancelled():  # its task is about to run, and finds that it has to leave
            return
        turn.set_result(None)
