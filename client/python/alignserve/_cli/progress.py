"""A progress bar, shown only on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

_WIDTH = 30
_REDRAW_SECONDS = 0.1


class Progress:
    """Counts finished items, and shows the count if `out` is a terminal without other output."""

    def __init__(
        self,
        total: int,
        out: TextIO,
        clock: Callable[[], float] = time.monotonic,
        *,
        is_hidden: bool = False,
    ) -> None:
        self.done = 0
        self.failed = 0
        self._total = total
        self._out = out
        self._clock = clock
        self._start = clock()
        self._drawn = self._start
        self._is_shown = out.isatty() and not is_hidden

    def advance(self, *, failed: bool) -> None:
        """Counts one more item."""
        self.failed += failed
        self.advance_by(1)

    def advance_by(self, count: int) -> None:
        """Counts more items that have not failed."""
        self.done += count
        now = self._clock()
        if self._is_shown and (now - self._drawn >= _REDRAW_SECONDS or self.done == self._total):
            self._drawn = now
            self._out.write(f"\r\x1b[K{self._bar()} {self.summary()}")
            self._out.flush()

    def finish(self) -> None:
        """Ends the bar's line, so that later output starts on a new one."""
        if self._is_shown:
            self._out.write("\r\x1b[K")
            self._out.flush()

    def summary(self) -> str:
        """Returns the counts, the time and the rate so far."""
        seconds = self._clock() - self._start
        rate = self.done / seconds if seconds > 0 else 0.0
        return f"{self.done}/{self._total} in {seconds:.1f} s, {rate:.1f}/s, {self.failed} failed"

    def _bar(self) -> str:
        filled = _WIDTH * self.done // max(self._total, 1)
        return "█" * filled + "░" * (_WIDTH - filled)
