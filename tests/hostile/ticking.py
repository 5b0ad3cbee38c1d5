"""alignserve-server with a ticker in its event loop: `python -m tests.hostile.ticking PAGE FLAG...`.

PAGE is a memory-mapped file with the ticker's measurements, readable even while the server hangs.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
import sys
import time
from contextlib import suppress
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


class RunDelays:
    """For how long each thread of this process has been ready to run while no core was free."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}  # descriptors by thread, kept open since opening takes longest
        self._seconds = self._read()

    def longest_growth(self) -> float:
        """Returns the most seconds that a thread has waited for a core since the last call."""
        before, self._seconds = self._seconds, self._read()
        return max(seconds - before.get(thread, 0.0) for thread, seconds in self._seconds.items())

    def _read(self) -> dict[str, float]:
        seconds = {}
        threads = os.listdir("/proc/self/task")  # noqa: PTH208 — a path for each takes longer
        for thread in threads:
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                if thread not in self._files:
                    self._files[thread] = os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY)
                seconds[thread] = int(os.pread(self._files[thread], 64, 0).split()[1]) / 1e9
        for ended in self._files.keys() - threads:
            os.close(self._files.pop(ended))
        return seconds


async def tick(page: Page) -> None:
    """Records the event loop lag until the loop ends.

    The machine may be busy with other work. So the longest time that any thread spent waiting for a core is
    subtracted: this thread needs one, and so does another that holds the GIL.
    """
    longest, watch = 0.0, 0
    delays = RunDelays()
    while True:
        due = time.monotonic() + _TICK_SECONDS
        await asyncio.sleep(_TICK_SECONDS)
        now = time.monotonic()
        lag = now - due - delays.longest_growth()
        if page.watch != watch:
            longest, watch = 0.0, page.watch
        else:
            longest = max(longest, lag)
        page.seen = longest, now, watch


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
