"""How long the steps of a call take on one machine: what a plan of capacity goes by."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

from alignserve_server.modality import MODALITIES


@dataclass(frozen=True, slots=True)
class Curve:
    """Measured times, in seconds; mappings are by modality.

    Attributes:
        model: What was measured, for people.
        cores: Those that the process may use.
        lanes: Batches that run at once.
        has_parallel_lanes: See `Encoder`.
        forward_cores: Cores that a forward keeps busy; near 0 where it waits for another device.
        call: What the event loop does to receive and answer a call.
        prepare: Decoding or tokenizing an item.
        forward: A batch in the model, by its length (tokens of a text; 1 for images) and then by its size.

    Raises:
        ValueError: Something is missing.
    """

    model: str
    cores: int
    lanes: int
    has_parallel_lanes: bool
    forward_cores: float
    call: Mapping[str, float]
    prepare: Mapping[str, float]
    forward: Mapping[str, Mapping[int, Mapping[int, float]]]

    def __post_init__(self) -> None:
        for modality in MODALITIES:
            if not {modality} <= self.call.keys() & self.prepare.keys() & self.forward.keys():
                raise ValueError(f"times of {modality}s are missing")
            if not self.forward[modality] or not all(self.forward[modality].values()):
                raise ValueError(f"times of {modality} forwards are missing")

    def forward_seconds(self, modality: str, size: int, length: int) -> float:
        """Returns how long a batch takes in the model, whose longest entry has that length."""
        by_length = {known: _at(size, by_size) for known, by_size in self.forward[modality].items()}
        return _at(length, by_length)


def _at(x: int, known: Mapping[int, float]) -> float:
    """Reads a curve between its points; before the first it is level, after the last in proportion to x."""
    points = sorted(known)
    after = bisect_right(points, x)
    if after == 0:
        return known[points[0]]
    low = points[after - 1]
    if after == len(points):
        return known[low] * x / low
    high = points[after]
    return known[low] + (known[high] - known[low]) * (x - low) / (high - low)
