"""Waiting for work that an event may end early."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

_S = TypeVar("_S")
_T = TypeVar("_T")


async def first_of(work: Awaitable[object], event: Awaitable[_T]) -> _T | None:
    """Waits until the work is done or the event comes, and cancels the other one.

    Returns:
        The result of the event, even if the work ended at the same time; None if the work ended first.

    Raises:
        BaseException: Whatever the work or the event raised.
    """
    working, coming = asyncio.ensure_future(work), asyncio.ensure_future(event)
    try:
        await asyncio.wait({working, coming}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return coming.result() if coming.done() else None
    finally:
        working.cancel()
        coming.cancel()
        # Their exceptions have this frame in the traceback; references to the tasks would form a cycle.
        del work, event, working, coming


async def both(one: Awaitable[_S], other: Awaitable[_T]) -> tuple[_S, _T]:
    """Waits until both are done, concurrently; if one fails, cancels the other.

    Raises:
        BaseException: Whatever the first to fail raised.
    """
    first, second = asyncio.ensure_future(one), asyncio.ensure_future(other)
    try:
        results = await asyncio.gather(first, second)
        return results[0], results[1]
    finally:
        first.cancel()
        second.cancel()
        # Their exceptions have this frame in the traceback; references to the tasks would form a cycle.
        del one, other, first, second
