"""Batches grow while serving if larger ones prove faster."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from alignserve_server.batching.scheduler import BatchPolicy, Scheduler
from alignserve_server.batching.widening import Widening

from tests.unit.fakes import entry

MANY = 1000


def served(
    widening: Widening,
    seconds_of: Callable[[int], float],
    *,
    waiting: int = MANY,
    batches: int = 10_000,
) -> list[int]:
    """Runs batches while that many entries wait; returns the sizes that the batches grew to."""
    grown = []
    for _ in range(batches):
        size = min(waiting, widening.next_size(waiting))
        if widening.learn(size, size, seconds_of(size)):
            grown.append(widening.size)
    return grown


@pytest.mark.parametrize(
    ("seconds_of", "sizes"),
    [
        (lambda _: 0.010, [4, 8, 16, 24]),
        (lambda size: 0.010 * size, []),
        (lambda size: 0.010 * size**0.98, []),
        (lambda size: 0.010 if size <= 8 else 0.010 * size / 8, [4, 8]),
        (lambda size: 0.1 * size**0.7, [4]),
        (lambda _: 0.0, [4, 8, 16, 24]),
    ],
    ids=["batching is free", "batching brings no gain", "hardly any gain", "knee", "too long", "zero time"],
)
def test_batches_double_while_throughput_rises(seconds_of: Callable[[int], float], sizes: list[int]) -> None:
    """A size of 2, measured on a busy machine, grows up to the limit or batches of half a second."""
    widening = Widening(2, 24)

    grown = served(widening, seconds_of)

    assert grown == sizes


def test_bursts_of_other_work_do_not_enlarge_batches() -> None:
    """Both sizes take turns, so a burst of other work affects both."""
    widening = Widening(4, 32)
    speeds = iter(range(100_000))

    grown = served(widening, lambda size: 0.010 * size * (1 + 9 * (next(speeds) // 7 % 2)))

    assert grown == []


def test_trials_are_rare_if_larger_batches_bring_no_gain() -> None:
    """Useless trials would keep the other modality waiting."""
    widening = Widening(4, 32)
    sizes: list[int] = []

    served(widening, lambda size: sizes.append(size) or 0.010 * size)

    assert 0 < sizes.count(8) < len(sizes) / 50


def test_a_short_queue_starts_no_trial() -> None:
    """A larger size is useless if fewer entries wait than it takes."""
    widening = Widening(4, 32)

    grown = served(widening, lambda _: 0.010, waiting=7)

    assert grown == []


@pytest.mark.parametrize("limit", [0, 8], ids=["pinned", "at the limit"])
def test_a_size_without_room_to_grow_stays(limit: int) -> None:
    """The size stays as the operator set it."""
    widening = Widening(8, limit)

    sizes = {widening.next_size(MANY) for _ in range(100)}

    assert (served(widening, lambda _: 0.010), sizes) == ([], {8})


def backlog(scheduler: Scheduler, seconds_of: Callable[[int], float], batches: int) -> list[int]:
    """Runs batches of images with a constant backlog; returns their sizes."""
    sizes = []
    for _ in range(batches):
        for _ in range(64 - scheduler.waiting("image")):
            scheduler.push("image", entry())
        batch = scheduler.next_batch(0.0)
        assert batch is not None
        sizes.append(len(batch.entries))
        scheduler.finish(batch, seconds_of(len(batch.entries)))
    return sizes


def test_a_scheduler_under_load_grows_its_batches() -> None:
    """The size grows from the one measured at startup to the fastest one."""
    scheduler = Scheduler({"image": BatchPolicy(2, limit=16)})

    sizes = backlog(scheduler, lambda _: 0.010, 400)

    assert (sizes[0], sizes[-1], scheduler.max_batch_size("image")) == (2, 16, 16)


def test_a_size_that_does_not_fit_the_device_is_not_tried_again() -> None:
    """A trial that runs out of memory ends all trials, and the size that fitted stays."""
    scheduler = Scheduler({"image": BatchPolicy(4, limit=16)})
    sizes = iter(backlog(scheduler, lambda _: 0.010, 31))

    shrunk = scheduler.shrink("image", failed_size=8)

    assert 8 in sizes
    assert shrunk == 4
    assert set(backlog(scheduler, lambda _: 0.010, 400)) == {4}
