"""Threads call the event loop, which wakes up once for many calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from alignserve_server.batching.loop_calls import LoopCalls

from tests.unit.fakes import settle


async def test_calls_run_on_the_loop_in_order() -> None:
    """Those of a thread arrive as it made them."""
    arrived: list[int] = []
    calls = LoopCalls(asyncio.get_running_loop())

    await asyncio.to_thread(lambda: [calls.add(arrived.append, number) for number in range(100)])
    await settle()

    assert arrived == list(range(100))


async def test_the_loop_wakes_up_once_for_calls_that_come_while_it_is_busy(monkeypatch) -> None:
    """And again for a call that comes later."""
    loop, wakes = asyncio.get_running_loop(), []
    wake = loop.call_soon_threadsafe

    def counted(*arguments: Callable[..., object]) -> asyncio.Handle:
        wakes.append(arguments)
        return wake(*arguments)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    calls = LoopCalls(loop)
    for _ in range(10):
        calls.add(lambda: None)
    wakes_while_busy = len(wakes)
    await settle()
    calls.add(lambda: None)

    assert (wakes_while_busy, len(wakes)) == (1, 2)


async def test_a_call_that_fails_does_not_lose_the_next_ones() -> None:
    """Its error goes to the loop's exception handler."""
    errors: list[type[Exception]] = []
    arrived: list[int] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(type(context["exception"])))
    calls = LoopCalls(loop)

    calls.add(arrived.append, 1)
    calls.add({}.__getitem__, "missing")
    calls.add(arrived.append, 2)
    await settle()

    assert arrived == [1, 2]
    assert errors == [KeyError]


def test_calls_to_a_closed_loop_are_dropped() -> None:
    """A batch may outlive the loop."""
    loop = asyncio.new_event_loop()
    loop.close()

    LoopCalls(loop).add(lambda: None)
