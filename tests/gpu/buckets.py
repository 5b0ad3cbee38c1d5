"""Simulates what an H100 serves with other batch sizes of graphs: `python -m tests.gpu.buckets`.

Callers send one image each and, once answered, the next after a pause. Two lanes take all waiting images, up
to the maximum batch, and take turns on the device, where a batch costs what its graph does: 2.2 ms and
0.33 ms per row, calculated from the bytes that align-base's forward moves. Time is simulated: the same on any
machine.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from alignserve_server.model.runtimes.static_forwards import image_batch_sizes

_FORWARD_SECONDS, _SECONDS_PER_ROW = 0.0022, 0.00033
_PAUSE_SECONDS = 0.002  # of a caller: on the wire, and decoding
_LANES = 2
_LIMIT = 32
POWERS_OF_TWO = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Rate:
    """The rate of a simulation.

    Attributes:
        images_per_second: Of all callers.
        mean_batch: Images per batch.
        mean_rows: Rows per batch, with padding.
    """

    images_per_second: float
    mean_batch: float
    mean_rows: float


def simulate(callers: int, sizes: Sequence[int], seconds: float = 10.0) -> Rate:
    """Returns the rate with graphs of these batch sizes, the largest of which is the maximum batch."""
    arrivals = [caller * 1e-5 for caller in range(callers)]
    lanes = [0.0] * _LANES  # when each is free
    device_free, batches = 0.0, []
    while (now := max(heapq.heappop(lanes), arrivals[0])) < seconds:
        batch = [heapq.heappop(arrivals)]
        while arrivals and arrivals[0] <= now and len(batch) < max(sizes):
            batch.append(heapq.heappop(arrivals))
        rows = min(size for size in sizes if size >= len(batch))
        device_free = max(now, device_free) + _FORWARD_SECONDS + _SECONDS_PER_ROW * rows
        heapq.heappush(lanes, device_free)
        for place in range(len(batch)):
            heapq.heappush(arrivals, device_free + _PAUSE_SECONDS + place * 1e-6)
        batches.append((len(batch), rows))
        if not arrivals:
            break
    images, padded = (sum(column) for column in zip(*batches, strict=True))
    return Rate(images / seconds, images / len(batches), padded / len(batches))


def main() -> None:
    """Prints the rates before and after, by the number of callers."""
    for callers in (24, 32, 40, 64):
        for name, sizes in (("powers of two", POWERS_OF_TWO), ("as served", image_batch_sizes(_LIMIT))):
            rate = simulate(callers, sizes)
            print(
                f"{callers:3d} callers, {name:13s}: {rate.images_per_second:5.0f} images/s, "
                f"batches of {rate.mean_batch:4.1f} padded to {rate.mean_rows:4.1f}"
            )


if __name__ == "__main__":
    main()
