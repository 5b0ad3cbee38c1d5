"""Time and randomness, in one place so that tests can replace them."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


async def _wait_async(event: asyncio.Event, seconds: float) -> bool:
    try:
        return await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False


@dataclass(frozen=True, slots=True)
class Clock:
    """A client's source of time, in seconds. Both waits return whether the event was set."""

    monotonic: Callable[[], float] = time.monotonic
    wait: Callable[[threading.Event, float], bool] = threading.Event.wait
    wait_async: Callable[[asyncio.Event, float], Awaitable[bool]] = _wait_async
    random: Callable[[], float] = random.random
