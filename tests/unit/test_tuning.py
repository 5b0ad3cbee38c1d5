"""The batch size is chosen from measured times."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from alignserve_server.batching.tuning import best_batch_size
from alignserve_server.model.encoder import OutOfDeviceMemory

from tests.unit.fakes import FakeClock


class Device:
    """Runs batches in the time that a function of their size says."""

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
        "batching costs",
        "batching is free",
        "odd limit",
        "limit 1",
        "knee",
        "dip",
        "hardly pays",
        "no time",
    ],
)
def test_the_smallest_batch_with_nearly_the_best_throughput_wins(
    seconds_of: Callable[[int], float], limit: int, best: int
) -> None:
    """Larger batches are taken only where they do more in the same time."""
    device = Device(seconds_of)

    size = best_batch_size(device, limit, device.clock)

    assert size == best


def test_after_three_sizes_that_do_not_pay_none_is_tried() -> None:
    """Large batches take long to try, and memory that a runtime may keep."""
    device = Device(lambda size: 0.001 * size)

    best_batch_size(device, 32, device.clock)

    assert max(device.sizes) == 8


def test_sizes_that_would_take_long_are_not_tried() -> None:
    """A slow model starts soon, and its batches do not keep others waiting."""
    device = Device(lambda size: 0.2 * size)

    best_batch_size(device, 32, device.clock)

    assert max(device.sizes) == 2


def test_one_disturbed_run_does_not_decide() -> None:
    """Of several runs of a size the fastest counts."""
    disturbed = iter([9.0])
    device = Device(lambda size: 0.010 + (next(disturbed, 0.0) if len(device.sizes) == 2 else 0.0))

    size = best_batch_size(device, 4, device.clock)

    assert size == 4


def test_sizes_that_do_not_fit_are_not_used() -> None:
    """A device that is too small for the largest batch serves smaller ones."""
    device = Device(lambda size: 0.010 if size <= 4 else _out_of_memory())

    size = best_batch_size(device, 32, device.clock)

    assert size == 4


def test_a_device_without_room_for_one_entry_is_an_error() -> None:
    """Nothing could be served."""
    with pytest.raises(OutOfDeviceMemory):
        best_batch_size(Device(lambda _: _out_of_memory()), 32)


def _out_of_memory() -> float:
    raise OutOfDeviceMemory
