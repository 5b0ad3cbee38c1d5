"""The deadlines of all requests share one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from alignserve_server.batching.deadlines import Deadlines
from alignserve_server.batching.fair_queue import ANONYMOUS
from alignserve_server.batching.request import Request


class StubLoop(asyncio.SelectorEventLoop):
    """An event loop whose time moves only when the test moves it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.timers: list[asyncio.TimerHandle] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[..., object], *arguments: object, **_: object):
        timer = super().call_at(when, callback, *arguments)
        self.timers.append(timer)
        return timer

    def move_to(self, time: float) -> None:
        """Runs the timers that are due by then, each at its time."""
        while due := [timer for timer in self.timers if timer.when() <= time]:
            timer = min(due, key=asyncio.TimerHandle.when)
            self.timers.remove(timer)
            if not timer.cancelled():
                self.now = timer.when()
                timer._run()
        self.now = time


@pytest.fixture
def loop():
    loop = StubLoop()
    yield loop
    loop.close()


@pytest.fixture
def expired() -> list[tuple[float, Request]]:
    return []


@pytest.fixture
def deadlines(loop: StubLoop, expired: list[tuple[float, Request]]) -> Deadlines:
    return Deadlines(loop, lambda request: expired.append((loop.now, request)))


def _request(deadline: float | None) -> Request:
    return Request("text", [1], ANONYMOUS, lambda _: None, enqueue_time=0.0, deadline=deadline)


def test_each_request_expires_at_its_own_deadline(loop, deadlines, expired):
    """Whatever the order in which they came."""
    late, early, middle = (_request(deadline) for deadline in (3.0, 1.0, 2.0))
    for request in (late, early, middle):
        deadlines.add(request)

    loop.move_to(10.0)

    assert expired == [(1.0, early), (2.0, middle), (3.0, late)]


def test_a_request_that_has_ended_does_not_expire(loop, deadlines, expired):
    """Nor does it keep others from expiring."""
    ended, waits = _request(1.0), _request(2.0)
    deadlines.add(ended)
    deadlines.add(waits)

    deadlines.discard(ended)
    loop.move_to(10.0)

    assert expired == [(2.0, waits)]


def test_a_request_without_a_deadline_never_expires(loop, deadlines, expired):
    """It needs no timer."""
    request = _request(None)
    deadlines.add(request)
    loop.move_to(1e9)
    deadlines.discard(request)

    assert expired == []
    assert loop.timers == []


def test_requests_with_like_deadlines_share_a_timer(loop, deadlines):
    """A thousand calls that end in time set as many timers as one."""
    for number in range(1000):
        loop.now = number * 0.001
        request = _request(loop.now + 10.0)
        deadlines.add(request)
        deadlines.discard(request)

    assert len(loop.timers) == 1


def test_a_timer_that_comes_early_still_expires_its_request(loop, deadlines, expired):
    """Loops round times, some of them down."""
    request = _request(1.0)
    deadlines.add(request)

    loop.now = 0.9995
    loop.timers[0]._run()

    assert [each for _, each in expired] == [request]


def test_little_is_kept_of_requests_that_have_ended(loop, deadlines):
    """Not until their deadline, which may be in an hour."""
    for request in (_request(3600.0) for _ in range(10_000)):
        deadlines.add(request)
        deadlines.discard(request)

    assert not deadlines._waiting
    assert not deadlines._numbers_of
    assert len(deadlines._heap) < 200
