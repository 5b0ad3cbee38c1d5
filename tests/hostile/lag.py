"""Measures the event loop lag of a live server under attack."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.ticking import Page
from tests.processes import ServerProcess, server_process

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

    async def least_lag(self, attack: Callable[[], Awaitable[object]], bound: float) -> float:
        """Returns the longest lag in seconds during an attack: the minimum of three tries, or the first below
        `bound`."""
        seen = []
        for _ in range(_TRIES):
            async with self.lag() as lag:
                await attack()
            seen.append(lag.seconds)
            if lag.seconds < bound:
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


@contextmanager
def ticking_server(*flags: str) -> Iterator[TickingServer]:
    """Runs alignserve-server with the flags, and yields it once it is ready."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(Page.SIZE))
        file.flush()
        program = (sys.executable, "-m", "tests.hostile.ticking", file.name)
        with server_process(*flags, program=program) as server:
            yield TickingServer(server, Page(Path(file.name)))
