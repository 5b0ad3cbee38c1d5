"""Waiting for work and for an event that may come before the work is done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

_T = TypeVar("_T")


async def first_of(work: Awaitable[object], event: Awaitable[_T]) -> _T | None:
    """Waits until the work is done or the event comes, and cancels the other one.

    Returns:
        What the event brings; None if only the work is done.

    Raises:
        Exception: Whatever the work raises.
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
        del working  # its error has this frame in its traceback, which would be a cycle
