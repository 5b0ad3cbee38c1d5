"""Measures the event loop lag of a live server under attack."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from alignserve.v1 import align_service_pb2 as pb

from tests.hostile.ticking import Page
from tests.processes import ServerProcess, server_process

MAX_LAG_PARSES = 3.0
"""For the largest requests. Usually it is below 1; labels checked on the event loop would cause about 4."""

_TRIES = 3
_LOOK_SECONDS = 0.002


@dataclass
class Lag:
    """The longest lag within a block, available after the block ends."""

    seconds: float = 0.0


@dataclass(frozen=True)
class TickingServer:
    """A server process with a ticker in its event loop."""

    server: ServerProcess
    page: Page

    @asynccontextmanager
    async def lag(self) -> AsyncIterator[Lag]:
        """Measures the lag for the length of the block.

        Time in which a thread of the server waited for a core does not count, so that a busy machine makes
        little difference.
        """
        lag = Lag()
        self.page.watch = watch = self.page.watch + 1
        await self._next_tick(watch)
        try:
            yield lag
        finally:
            lag.seconds = await self._next_tick(watch)

    async def least_lag_in_parses(self, attack: Callable[[], Awaitable[object]], bound: float) -> float:
        """Returns the longest lag during an attack: the minimum of three tries, or the first below `bound`.

        One parse is the CPU time in which this machine now parses one of the largest requests, about 10 ms.
        So a slow machine makes little difference.
        """
        seen = []
        for _ in range(_TRIES):
            before = _parse_seconds()
            async with self.lag() as lag:
                await attack()
            seen.append(lag.seconds / max(before, _parse_seconds()))
            if seen[-1] < bound:
                break
        return min(seen)

    async def _next_tick(self, watch: int) -> float:
        """Waits for a tick that started after this call; returns the watch's longest lag in seconds."""
        ticks, last = 0, self.page.seen[1]
        while ticks < 2 and self.server.process.poll() is None:  # the first may have started earlier
            await asyncio.sleep(_LOOK_SECONDS)
            _, now, of = self.page.seen
            ticks += of == watch and now != last
            last = now
        return self.page.seen[0]


@cache
def _largest_request() -> bytes:
    """Builds a request of 16 MB, whose 1,000 labels are outside ASCII."""
    return pb.ClassifyRequest(labels=["é" * 8_000] * 1_000).SerializeToString()


def _parse_seconds() -> float:
    request = _largest_request()
    start = time.thread_time()
    list(pb.ClassifyRequest.FromString(request).labels)
    return time.thread_time() - start


@contextmanager
def ticking_server(*flags: str) -> Iterator[TickingServer]:
    """Runs alignserve-server with the flags, and yields it once it is ready."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(Page.SIZE))
        file.flush()
        program = (sys.executable, "-m", "tests.hostile.ticking", file.name)
        with server_process(*flags, program=program) as server:
            yield TickingServer(server, Page(Path(file.name)))
