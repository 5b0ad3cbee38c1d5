"""Waiting for work that an event may end early."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
from alignserve_server.host.waiting import both, first_of


async def _never() -> None:
    await asyncio.Event().wait()


class _Failure(Exception):
    pass


async def _fail() -> None:
    raise _Failure


async def test_work_that_ends_first_cancels_the_event() -> None:
    """The result is None, and nothing waits for the event any longer."""
    event = asyncio.ensure_future(_never())

    assert await first_of(asyncio.sleep(0), event) is None

    await asyncio.wait({event})
    assert event.cancelled()


async def test_an_event_that_comes_first_cancels_the_work() -> None:
    """The result of the event is returned."""
    work, signals = asyncio.ensure_future(_never()), asyncio.Queue[int]()
    signals.put_nowait(15)

    assert await first_of(work, signals.get()) == 15

    await asyncio.wait({work})
    assert work.cancelled()


async def test_an_event_is_not_lost_if_the_work_ends_at_the_same_time() -> None:
    """A signal that was taken from its queue still reaches the waiter."""
    loop = asyncio.get_running_loop()
    work, event = loop.create_future(), loop.create_future()
    work.set_result(None)
    event.set_result(15)

    assert await first_of(work, event) == 15


async def test_exceptions_of_the_work_are_raised() -> None:
    """They are raised even if the event never comes."""
    with pytest.raises(_Failure):
        await first_of(_fail(), _never())


async def test_a_cancelled_wait_cancels_both() -> None:
    """Neither continues without a waiter."""
    tasks = [asyncio.ensure_future(_never()), asyncio.ensure_future(_never())]
    waiting = asyncio.ensure_future(first_of(*tasks))
    await asyncio.sleep(0)

    waiting.cancel()

    await asyncio.wait({waiting, *tasks})
    assert [each.cancelled() for each in tasks] == [True, True]


async def test_failed_work_is_freed_without_the_collector() -> None:
    """The frames in its traceback do not refer to its task."""
    tasks: weakref.WeakSet[object] = weakref.WeakSet()

    async def fail() -> None:
        tasks.add(asyncio.current_task())
        raise _Failure

    gc.disable()
    try:
        with pytest.raises(_Failure):
            await first_of(fail(), _never())
        await asyncio.sleep(0)
        assert not tasks
    finally:
        gc.enable()


async def test_both_results_are_returned_in_order() -> None:
    """Whichever is done first."""
    assert await both(asyncio.sleep(0.001, "one"), asyncio.sleep(0, "other")) == ("one", "other")


@pytest.mark.parametrize("fails_first", [True, False])
async def test_a_failure_of_one_cancels_the_other(fails_first: bool) -> None:
    """Its exception is raised, and nothing continues."""
    other = asyncio.ensure_future(_never())

    with pytest.raises(_Failure):
        await (both(_fail(), other) if fails_first else both(other, _fail()))

    await asyncio.wait({other})
    assert other.cancelled()


async def test_a_failure_of_both_is_freed_without_the_collector() -> None:
    """The frames in the tracebacks do not refer to the tasks."""
    tasks: weakref.WeakSet[object] = weakref.WeakSet()

    async def fail() -> None:
        tasks.add(asyncio.current_task())
        raise _Failure

    gc.disable()
    try:
        with pytest.raises(_Failure):
            await both(fail(), fail())
        await asyncio.sleep(0)
        assert not tasks
    finally:
        gc.enable()
