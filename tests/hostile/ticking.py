"""alignserve-server with a ticker in its event loop: `python -m tests.hostile.ticking PAGE FLAG...`.

PAGE is a memory-mapped file with the ticker's measurements, readable even while the server hangs.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
import sys
import time
from pathlib import Path
from typing import Any, Final

from alignserve_server.cli.main import main as run_server
from alignserve_server.serving import server

_SEEN = struct.Struct("=ddQ")
_SINCE = struct.Struct("=Q")  # written by the reader
_TICK_SECONDS = 0.002


class Page:
    """The memory that the ticker and its reader share; each writes only its own half."""

    SIZE: Final = _SEEN.size + _SINCE.size

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), self.SIZE)

    @property
    def seen(self) -> tuple[float, float, int]:
        """The longest lag in seconds, the time of the last tick, and the number of the watch."""
        longest, last, watch = _SEEN.unpack_from(self._memory)
        return longest, last, watch

    @seen.setter
    def seen(self, value: tuple[float, float, int]) -> None:
        _SEEN.pack_into(self._memory, 0, *value)

    @property
    def watch(self) -> int:
        """The number of the watch; when it changes, the ticker restarts from 0."""
        number: int = _SINCE.unpack_from(self._memory, _SEEN.size)[0]
        return number

    @watch.setter
    def watch(self, number: int) -> None:
        _SINCE.pack_into(self._memory, _SEEN.size, number)


async def tick(page: Page) -> None:
    """Records the event loop lag until the loop ends.

    The machine may be busy with other work. So time that this thread spent waiting for a core is subtracted.
    A lag is at most the process's CPU time meanwhile: another thread may hold the GIL without a core.
    """
    longest, watch = 0.0, 0
    while True:
        due, waited, busy = time.monotonic() + _TICK_SECONDS, _seconds_without_core(), time.process_time()
        await asyncio.sleep(_TICK_SECONDS)
        now = time.monotonic()
        lag = min(now - due - (_seconds_without_core() - waited), time.process_time() - busy)
        if page.watch != watch:
            longest, watch = 0.0, page.watch
        else:
            longest = max(longest, lag)
        page.seen = longest, now, watch


def _seconds_without_core() -> float:
    """Returns for how long this thread has been ready to run while no core was free."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def main() -> None:
    """Serves as alignserve-server does."""
    page = Page(Path(sys.argv.pop(1)))
    serve = server.serve

    async def ticking(*args: Any, **options: Any) -> int:
        ticker = asyncio.ensure_future(tick(page))
        try:
            return await serve(*args, **options)
        finally:
            ticker.cancel()

    server.serve = ticking
    run_server()


if __name__ == "__main__":
    main()
