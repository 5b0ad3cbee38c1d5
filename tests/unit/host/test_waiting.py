"""Work that an event can interrupt."""

from __future__ import annotations

import asyncio

import pytest
from alignserve_server.host.waiting import first_of


async def _forever() -> None:
    await asyncio.Event().wait()


async def _event() -> str:
    return "event"


async def test_work_that_is_done_first_cancels_the_wait_for_the_event() -> None:
    """Nothing is left that waits for it."""
    tasks = asyncio.all_tasks()

    came = await first_of(asyncio.sleep(0), _forever())
    await asyncio.sleep(0)

    assert came is None
    assert asyncio.all_tasks() == tasks


async def test_an_event_that_comes_first_cancels_the_work() -> None:
    """The caller gets what the event brings."""
    work = asyncio.ensure_future(_forever())

    came = await first_of(work, _event())
    await asyncio.wait({work})

    assert came == "event"
    assert work.cancelled()


async def test_an_event_is_not_lost_if_the_work_is_done_at_the_same_time() -> None:
    """A signal that was taken out of its queue cannot be put back."""
    assert await first_of(asyncio.sleep(0), asyncio.sleep(0, "event")) == "event"


async def test_what_the_work_raises_is_raised() -> None:
    """Even if the event comes too."""

    async def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await first_of(fail(), _event())


async def test_a_cancelled_wait_cancels_both() -> None:
    """Neither goes on without an owner."""
    work, event = asyncio.ensure_future(_forever()), asyncio.ensure_future(_forever())
    waiting = asyncio.ensure_future(first_of(work, event))
    await asyncio.sleep(0)

    waiting.cancel()
    await asyncio.wait({waiting, work, event})

    assert work.cancelled()
    assert event.cancelled()
