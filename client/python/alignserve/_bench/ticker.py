"""Shows the progress of a measurement on one line, only on a terminal."""

from __future__ import annotations

from typing import TextIO

from alignserve._bench.load import Load
from alignserve._bench.recorder import Recorder
from alignserve._bench.report import ms

_REDRAW_SECONDS = 0.25


class Ticker:
    """Shows the counts of a recorder, a few times per second."""

    def __init__(self, load: Load, out: TextIO) -> None:
        self._name = f"{load.mode} {load.value:g}"
        self._out = out
        self._is_shown = out.isatty()
        self._next = 0.0

    def watch(self, recorder: Recorder, now: float) -> None:
        """Redraws if it is time; called after each request."""
        if self._is_shown and now >= self._next:
            self._next = now + _REDRAW_SECONDS
            self._out.write(f"\r\x1b[K{self._line(recorder, now)}")
            self._out.flush()

    def finish(self) -> None:
        """Clears the line."""
        if self._is_shown:
            self._out.write("\r\x1b[K")
            self._out.flush()

    def _line(self, recorder: Recorder, now: float) -> str:
        seconds = now - recorder.begin
        if seconds <= 0:
            return f"{self._name}: warming up"
        duration = recorder.end - recorder.begin
        return (
            f"{self._name}: {min(seconds, duration):.0f} of {duration:g} s, "
            f"{recorder.answers / min(seconds, duration):,.1f} requests/s, "
            f"p50 {ms(recorder.latency.percentile(50))} ms, {recorder.failed:,} failed"
        )
