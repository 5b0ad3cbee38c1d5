"""The progress of a long job: a line that is redrawn on a terminal, and otherwise a line every 30 seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import TextIO

_REDRAW_SECONDS = 0.2
_LINE_SECONDS = 30.0


class JobProgress:
    """Counts rows, and shows their number, their rate, the failures and the time left.

    Args:
        out: Where to show them.
        files: Number of source files.
        total: Number of rows in this run, if it is known; otherwise the time left is estimated from files.
        clock: In seconds.
    """

    def __init__(
        self,
        out: TextIO,
        *,
        files: int,
        total: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.done = 0
        self.failed = 0
        self._files = files
        self._files_done = 0
        self._total = total
        self._out = out
        self._clock = clock
        self._start = self._shown_at = clock()
        self._is_terminal = out.isatty()
        self._interval = _REDRAW_SECONDS if self._is_terminal else _LINE_SECONDS

    def row(self, *, failed: bool) -> None:
        """Counts a row."""
        self.done += 1
        self.failed += failed
        now = self._clock()
        if now - self._shown_at >= self._interval:
            self._shown_at = now
            self._show()

    def file(self) -> None:
        """Counts a source file that is done."""
        self._files_done += 1

    def finish(self) -> None:
        """Ends the line on a terminal, so that later output starts on a new one."""
        if self._is_terminal:
            self._out.write("\r\x1b[K")
            self._out.flush()

    def summary(self) -> str:
        """Returns the numbers so far, for people."""
        seconds = self._clock() - self._start
        of_total = f"/{self._total:,}" if self._total is not None else ""
        parts = [f"{self.done:,}{of_total} rows", f"{self.done / max(seconds, 1e-9):,.1f}/s"]
        parts.append(f"{self.failed:,} failed")
        if self._files > 1:
            parts.append(f"{self._files_done}/{self._files} files")
        if (left := self._seconds_left(seconds)) is not None:
            parts.append(f"ETA {timedelta(seconds=round(left))}")
        return ", ".join(parts)

    def _seconds_left(self, seconds: float) -> float | None:
        if self._total is not None and self.done:
            return seconds / self.done * max(self._total - self.done, 0)
        if self._files > 1 and self._files_done:
            return seconds / self._files_done * (self._files - self._files_done)
        return None

    def _show(self) -> None:
        line = f"\r\x1b[K{self.summary()}" if self._is_terminal else f"{self.summary()}\n"
        self._out.write(line)
        self._out.flush()
