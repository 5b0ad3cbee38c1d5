"""The deadlines of all requests, with one timer of the event loop."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

from alignserve_server.batching.request import Request

_FEW = 64  # numbers of ended requests that may always remain


class Deadlines:
    """Calls back for each request whose deadline passes. Use only on the event loop's thread.

    A timer for each request would cost more than the rest of its bookkeeping. Most requests end long before
    their deadline; of these, only a number remains until there are more of them than waiting requests.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_expired: Callable[[Request], object]) -> None:
        """Starts empty; deadlines are in the loop's time."""
        self._loop = loop
        self._on_expired = on_expired
        self._numbers = count()
        self._numbers_of: dict[Request, int] = {}
        self._waiting: dict[int, Request] = {}  # by number
        self._heap: list[tuple[float, int]] = []  # deadlines and numbers, also of requests that have ended
        self._timer: asyncio.TimerHandle | None = None
        self._timer_time = 0.0

    def add(self, request: Request) -> None:
        """Watches the deadline of a request, if it has one."""
        if request.deadline is None:
            return
        number = next(self._numbers)
        self._waiting[number] = request
        self._numbers_of[request] = number
        heapq.heappush(self._heap, (request.deadline, number))
        if self._timer is None or request.deadline < self._timer_time:
            self._set_timer()

    def discard(self, request: Request) -> None:
        """Forgets a request that has ended; no effect if it is not watched."""
        number = self._numbers_of.pop(request, None)
        if number is None:
            return
        del self._waiting[number]
        if len(self._heap) > 2 * len(self._waiting) + _FEW:
            self._heap = [each for each in self._heap if each[1] in self._waiting]
            heapq.heapify(self._heap)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_time = self._heap[0][0]
        self._timer = self._loop.call_at(self._timer_time, self._expire)

    def _expire(self) -> None:
        """Calls back for the requests that are due, and sets the timer for the next one."""
        self._timer = None
        now = max(self._timer_time, self._loop.time())  # a timer may come a little early
        while self._heap and (self._heap[0][0] <= now or self._heap[0][1] not in self._waiting):
            request = self._waiting.pop(heapq.heappop(self._heap)[1], None)
            if request is not None:
                del self._numbers_of[request]
                self._on_expired(request)
        if self._heap and self._timer is None:
            self._set_timer()
