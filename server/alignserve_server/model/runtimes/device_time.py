"""The time that forwards occupy a device, measured by CUDA events on one timeline."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable
from typing import Any, TypeAlias

_Span: TypeAlias = tuple[float, float]  # seconds on the timeline

_MOST_SPANS = 1024  # of forwards of one stream that another stream's forward can overlap with


class DeviceTime:
    """Charges each forward the device time that no other forward has been charged.

    The sum of all charges is the time in which the device was busy. Where forwards of two streams overlap,
    the one that is charged first, which is the one that ends first, pays for both.
    """

    def __init__(self, streams: list[Hashable]) -> None:
        """Starts with the names of the streams; forwards of one stream do not overlap."""
        self._lock = threading.Lock()
        self._spans: dict[Hashable, deque[_Span]] = {name: deque(maxlen=_MOST_SPANS) for name in streams}
        self._latest: Any = None  # an event that has happened, and its time on the timeline
        self._latest_time = 0.0

    def charge(self, stream: Hashable, begun: Any, done: Any) -> float:
        """Returns the seconds that a forward is charged, given its events, which have happened."""
        seconds = float(begun.elapsed_time(done)) / 1e3
        with self._lock:
            # CUDA's times are float32 milliseconds: precise only between events that are close.
            end = self._latest_time + (self._latest.elapsed_time(done) / 1e3 if self._latest else 0.0)
            charged = seconds - self._charged(stream, end - seconds, end)
            self._spans[stream].append((end - seconds, end))
            self._latest, self._latest_time = done, end
        return max(0.0, charged)

    def _charged(self, stream: Hashable, begin: float, end: float) -> float:
        """Returns how much of a span forwards of other streams were charged."""
        charged = 0.0
        for name, spans in self._spans.items():
            if name != stream:
                charged += sum(max(0.0, min(end, until) - max(begin, since)) for since, until in spans)
                while spans and spans[0][1] <= begin:  # a later forward of this stream begins later
                    spans.popleft()
        return charged
