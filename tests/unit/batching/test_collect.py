"""Which entries form a batch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from alignserve_server.batching.collect import collect, padding_ratio
from alignserve_server.batching.queue import Entry

from tests.unit.fakes import entry, names


def _entries(*lengths: int) -> list[Entry]:
    return [entry(f"{position}", length=length) for position, length in enumerate(lengths)]


def test_nothing_waiting_gives_an_empty_batch() -> None:
    """An empty queue is the one case of an empty batch."""
    batch = collect([], limit=4)

    assert batch == []


@pytest.mark.parametrize(("waiting", "taken"), [(1, 1), (3, 3), (4, 4), (5, 4), (100, 4)])
def test_takes_what_waits_up_to_the_limit(waiting: int, taken: int) -> None:
    """One, fewer than the limit, exactly full, one over, and many."""
    batch = collect(_entries(*[1] * waiting), limit=4)

    assert len(batch) == taken


def test_entries_of_one_length_come_out_oldest_first() -> None:
    """Images, all of one length, keep the order of their arrival."""
    batch = collect(_entries(1, 1, 1, 1), limit=3)

    assert names(batch) == ["0", "1", "2"]


def test_padding_above_the_overhead_keeps_a_neighbour_out() -> None:
    """A neighbour that costs more padding than a batch of its own waits for the next batch."""
    batch = collect(_entries(10, 15), limit=2, overhead=4)

    assert names(batch) == ["0"]


def test_padding_equal_to_the_overhead_lets_a_neighbour_in() -> None:
    """The bound is inclusive."""
    batch = collect(_entries(10, 14), limit=2, overhead=4)

    assert names(batch) == ["0", "1"]


def test_a_longer_neighbour_is_charged_for_the_padding_of_all_chosen() -> None:
    """Two entries padded by 3 each cost 6, more than the overhead, although one alone would pay."""
    batch = collect(_entries(10, 10, 13), limit=3, overhead=5)

    assert names(batch) == ["0", "1"]


def test_a_shorter_neighbour_is_charged_for_its_own_padding_alone() -> None:
    """A short entry pads only itself, however many long ones are chosen already."""
    batch = collect(_entries(13, 13, 10), limit=3, overhead=3)

    assert names(batch) == ["2", "0", "1"]


def test_without_overhead_only_equal_lengths_share_a_batch() -> None:
    """If batches cost nothing, no padding pays."""
    batch = collect(_entries(5, 6, 5, 4), limit=4)

    assert names(batch) == ["0", "2"]


def test_the_oldest_is_always_taken_however_unlike_the_others_it_is() -> None:
    """Grouping by length never makes the oldest wait."""
    batch = collect(_entries(64, 4, 4, 4, 4), limit=4, overhead=16)

    assert names(batch) == ["0"]


def test_nearer_lengths_are_preferred_to_older_entries() -> None:
    """Of those behind the oldest, the ones near it in length go with it."""
    batch = collect(_entries(10, 30, 11), limit=2, overhead=100)

    assert names(batch) == ["0", "2"]


def test_a_long_queue_is_looked_at_only_up_to_a_bound() -> None:
    """The cost of a batch does not grow with the queue: eight batches' worth of entries are read."""
    read = 0

    def waiting() -> Iterator[Entry]:
        nonlocal read
        while True:
            read += 1
            yield entry(length=read)

    batch = collect(waiting(), limit=4)

    assert len(batch) == 1
    assert read == 32


def test_padding_ratio_of_equal_lengths_is_zero() -> None:
    """A batch of one length has no padding."""
    ratio = padding_ratio(_entries(7, 7))

    assert ratio == 0.0


def test_padding_ratio_is_the_share_of_padding() -> None:
    """Lengths 2 and 8 fill 10 of 16 places."""
    ratio = padding_ratio(_entries(2, 8))

    assert ratio == pytest.approx(6 / 16)
