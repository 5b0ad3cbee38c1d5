"""The report of a batch after it has run: plain numbers, so that it can come from another process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class BatchReport(NamedTuple):
    """A batch that a lane has run. Times are in monotonic seconds."""

    modality: str
    start_time: float  # when it left the queue
    seconds: float  # spent in a lane: in the model, and waiting while other lanes use the device
    device_seconds: float  # of these, those of the device
    queue_seconds: Sequence[float]  # per entry
    padding_ratio: float | None  # share of a text batch's tokens that are padding
    has_succeeded: bool  # for at least one entry
    waiting_since: Mapping[int, float]  # for each sampled reservation, when its first entry was queued
    sampled: Sequence[int]  # per entry, its first sampled reservation, or 0; empty if there are none

    @property
    def size(self) -> int:
        """The number of its entries, including those of calls that are not sampled."""
        return len(self.queue_seconds)

    @property
    def end_time(self) -> float:
        """When the lane had finished."""
        return self.start_time + self.seconds
