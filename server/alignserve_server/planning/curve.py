"""The measured cost of each step of a call on one machine, which a capacity plan is based on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

from alignserve_server.modality import MODALITIES


@dataclass(frozen=True, slots=True)
class FrontCalls:
    """CPU time in seconds of a call with front processes, by modality.

    Attributes:
        front: Of the front that takes it.
        device: Of the device process, on its event loop.
    """

    front: Mapping[str, float]
    device: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Curve:
    """Measured times in seconds; mappings are by modality.

    Attributes:
        model: Description of the measured model.
        cores: Cores that the process may use.
        lanes: Batches that run concurrently.
        has_parallel_lanes: See `Encoder`.
        forward_cores: Cores that a forward keeps busy; close to 0 if it waits for another device.
        call: CPU time of the event loop to receive and answer a call.
        prepare: Decoding or tokenizing an item.
        forward: Running a batch, by its length (tokens of a text; 1 for images) and then by its size.
        lanes_per_modality: See `Encoder`.
        front_calls: Replaces `call` with front processes; None if it was not measured.

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
    lanes_per_modality: int | None = None
    front_calls: FrontCalls | None = None

    def __post_init__(self) -> None:
        for modality in MODALITIES:
            if not {modality} <= self.call.keys() & self.prepare.keys() & self.forward.keys():
                raise ValueError(f"times of {modality}s are missing")
            if not self.forward[modality] or not all(self.forward[modality].values()):
                raise ValueError(f"times of {modality} forwards are missing")

    def forward_seconds(self, modality: str, size: int, length: int) -> float:
        """Returns how long a batch takes, given its size and the length of its longest entry."""
        by_length = {known: _at(size, by_size) for known, by_size in self.forward[modality].items()}
        return _at(length, by_length)


def _at(x: int, known: Mapping[int, float]) -> float:
    """Interpolates linearly; constant before the first point, proportional to x after the last."""
    points = sorted(known)
    after = bisect_right(points, x)
    if after == 0:
        return known[points[0]]
    low = points[after - 1]
    if after == len(points):
        return known[low] * x / low
    high = points[after]
    return known[low] + (known[high] - known[low]) * (x - low) / (high - low)
