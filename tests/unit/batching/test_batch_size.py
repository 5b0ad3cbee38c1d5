"""The batch size is chosen from measured times."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
from alignserve_server.batching.batch_size import best_batch
from alignserve_server.model.encoder import OutOfDeviceMemory

from tests.unit.fakes import FakeClock


class Device:
    """Runs batches in a time given by a function of their size."""

    def __init__(self, seconds_of: Callable[[int], float]) -> None:
        self.clock = FakeClock()
        self.sizes: list[int] = []
        self._seconds_of = seconds_of

    def __call__(self, size: int) -> None:
        self.sizes.append(size)
        self.clock.advance(self._seconds_of(size))


@pytest.mark.parametrize(
    ("seconds_of", "limit", "best"),
    [
        (lambda size: 0.010 * size, 32, 1),
        (lambda size: 0.010, 32, 32),
        (lambda size: 0.010, 24, 24),
        (lambda size: 0.010, 1, 1),
        (lambda size: 0.010 if size <= 8 else 0.010 * size / 8, 32, 8),
        (lambda size: {1: 0.019, 2: 0.031, 4: 0.054, 8: 0.109, 16: 0.147, 32: 0.268}[size], 32, 32),
        (lambda size: {1: 0.003, 2: 0.0058, 4: 0.012}[size], 4, 1),
        (lambda size: 0.0, 8, 8),
    ],
    ids=[
        "batching brings no gain",
        "batching is free",
        "odd limit",
        "limit 1",
        "knee",
        "dip",
        "hardly any gain",
        "zero time",
    ],
)
def test_the_smallest_batch_with_nearly_the_best_throughput_wins(
    seconds_of: Callable[[int], float], limit: int, best: int
) -> None:
    """A larger batch is chosen only if it has a higher throughput."""
    device = Device(seconds_of)

    size = best_batch(device, limit, device.clock).size

    assert size == best


def test_no_size_is_tried_after_three_that_bring_no_gain() -> None:
    """Trying large batches takes time, and memory that a runtime may not release."""
    device = Device(lambda size: 0.001 * size)

    best_batch(device, 32, device.clock)

    assert max(device.sizes) == 8


def test_sizes_that_would_take_long_are_not_tried() -> None:
    """A slow model starts quickly, and its batches do not keep others waiting."""
    device = Device(lambda size: 0.2 * size)

    best_batch(device, 32, device.clock)

    assert max(device.sizes) == 2


def test_one_disturbed_run_does_not_decide() -> None:
    """Only the fastest of several runs of a size counts."""
    disturbed = iter([9.0])
    device = Device(lambda size: 0.010 + (next(disturbed, 0.0) if len(device.sizes) == 2 else 0.0))

    size = best_batch(device, 4, device.clock).size

    assert size == 4


@pytest.mark.parametrize("length", [1, 5, 12])
def test_bursts_of_other_work_do_not_decide(length: int) -> None:
    """Sizes are measured in turn, so that a burst affects all of them, whenever it occurs."""
    sizes = set()
    for phase in range(4 * length):
        runs = count(phase)
        device = Device(lambda size: (0.004 + 0.001 * size) * (1 if next(runs) // length % 4 else 10))  # noqa: B023
        sizes.add(best_batch(device, 32, device.clock).size)

    assert sizes == {32}


def test_a_burst_during_the_first_runs_ends_no_trials() -> None:
    """A first run of a second does not rule out larger batches."""
    slow = iter([0.0, 1.0, 0.0, 3.0])
    device = Device(lambda _: 0.010 + next(slow, 0.0))

    size = best_batch(device, 32, device.clock).size

    assert size == 32


def test_a_slow_model_is_measured_less_often() -> None:
    """A slow model does not lengthen the startup much."""
    slow, fast = Device(lambda _: 0.4), Device(lambda _: 0.003)
    for device in (slow, fast):
        best_batch(device, 32, device.clock)

    assert (slow.clock.now < 3.0, len(slow.sizes) >= 3) == (True, True)
    assert fast.sizes.count(1) == 6


def test_sizes_that_do_not_fit_are_not_used() -> None:
    """A device without memory for the largest batch serves smaller ones."""
    device = Device(lambda size: 0.010 if size <= 4 else _out_of_memory())

    size = best_batch(device, 32, device.clock).size

    assert size == 4


def test_a_device_without_room_for_one_entry_is_an_error() -> None:
    """Such a device could not serve anything."""
    with pytest.raises(OutOfDeviceMemory):
        best_batch(Device(lambda _: _out_of_memory()), 32)


def _out_of_memory() -> float:
    raise OutOfDeviceMemory
