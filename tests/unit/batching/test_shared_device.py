"""Two lanes that take turns on one device: a batch costs its own device time, not its wait for the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from alignserve_server.batching.scheduler import Batch, BatchPolicy, Scheduler

from tests.unit.fakes import entry

# The device time of a full batch of align-base on an H100, as its roofline predicts.
_SECONDS = {"image": 0.0126, "text": 0.0009}
_BATCHES = 2000
_LANES = 2


def _device_seconds(charge: Callable[[float, float], float]) -> dict[str, float]:
    """Runs a backlog of both modalities on two lanes of one device; returns the device time of each.

    `charge` chooses the seconds that a batch costs from its duration in the lane and its device time.
    """
    scheduler = Scheduler({modality: BatchPolicy(32) for modality in _SECONDS})
    used = dict.fromkeys(_SECONDS, 0.0)
    running: list[tuple[float, Batch]] = []  # in the order in which the device runs them, with their end
    now = device_free = 0.0
    for _ in range(_BATCHES):
        for modality in _SECONDS:
            for _ in range(64 - scheduler.waiting(modality)):
                scheduler.push(modality, entry())
        while len(running) < _LANES:
            batch = scheduler.next_batch(now)
            assert batch is not None
            device_free = max(now, device_free) + _SECONDS[batch.modality]
            running.append((device_free, batch))
        now, done = running.pop(0)
        seconds = _SECONDS[done.modality]
        used[done.modality] += seconds
        scheduler.finish(done, charge(now - done.start_time, seconds))
    return used


def test_modalities_get_equal_device_time() -> None:
    """A text batch that waits for an image batch of fourteen times its length costs only its own time."""
    used = _device_seconds(lambda duration, device: device)

    assert used["image"] == pytest.approx(used["text"], rel=0.05)


def test_a_charge_by_duration_would_starve_the_short_batches() -> None:
    """This is why the device time is measured: a short batch lasts as long as the one ahead of it."""
    used = _device_seconds(lambda duration, device: duration)

    assert used["image"] > 4 * used["text"]
