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
    """Only an empty queue gives an empty batch."""
    batch = collect([], limit=4)

    assert batch == []


@pytest.mark.parametrize(("waiting", "taken"), [(1, 1), (3, 3), (4, 4), (5, 4), (100, 4)])
def test_takes_waiting_entries_up_to_the_limit(waiting: int, taken: int) -> None:
    """One, fewer than the limit, exactly full, one over, and many."""
    batch = collect(_entries(*[1] * waiting), limit=4)

    assert len(batch) == taken


def test_entries_of_one_length_come_out_oldest_first() -> None:
    """Images all have the same length and keep their order of arrival."""
    batch = collect(_entries(1, 1, 1, 1), limit=3)

    assert names(batch) == ["0", "1", "2"]


def test_padding_above_the_overhead_keeps_a_neighbour_out() -> None:
    """An entry whose padding costs more than a separate batch waits for the next batch."""
    batch = collect(_entries(10, 15), limit=2, overhead=4)

    assert names(batch) == ["0"]


def test_padding_equal_to_the_overhead_lets_a_neighbour_in() -> None:
    """The bound is inclusive."""
    batch = collect(_entries(10, 14), limit=2, overhead=4)

    assert names(batch) == ["0", "1"]


def test_a_longer_neighbour_is_charged_for_the_padding_of_all_chosen() -> None:
    """Padding two entries by 3 costs 6, more than the overhead; padding one would be worth it."""
    batch = collect(_entries(10, 10, 13), limit=3, overhead=5)

    assert names(batch) == ["0", "1"]


def test_a_shorter_neighbour_is_charged_only_for_its_own_padding() -> None:
    """Only the short entry is padded, however many long entries are already chosen."""
    batch = collect(_entries(13, 13, 10), limit=3, overhead=3)

    assert names(batch) == ["2", "0", "1"]


def test_many_shorter_entries_run_in_a_batch_of_their_own() -> None:
    """Each of them may be padded by 58, but padding all thirty costs more than a batch."""
    batch = collect(_entries(64, *[6] * 30, 64), limit=64, overhead=1285)

    assert names(batch) == ["0", "31"]


def test_a_few_shorter_entries_are_padded() -> None:
    """A batch of their own costs more."""
    batch = collect(_entries(64, *[6] * 20), limit=64, overhead=1285)

    assert len(batch) == 21


def test_longer_entries_wait_if_the_first_is_among_the_shorter_ones() -> None:
    """The part with the oldest entry runs first, at its own length."""
    batch = collect(_entries(*[6] * 30, *[40] * 2, *[64] * 40), limit=128, overhead=1285)

    assert {entry.length for entry in batch} <= {6, 40}


def test_without_overhead_only_equal_lengths_share_a_batch() -> None:
    """If a batch has no fixed cost, no padding is worth it."""
    batch = collect(_entries(5, 6, 5, 4), limit=4)

    assert names(batch) == ["0", "2"]


def test_the_oldest_entry_is_always_taken_whatever_its_length() -> None:
    """Grouping by length never makes the oldest entry wait."""
    batch = collect(_entries(64, 4, 4, 4, 4), limit=4, overhead=16)

    assert names(batch) == ["0"]


def test_nearer_lengths_are_preferred_to_older_entries() -> None:
    """The oldest entry is joined by entries close to it in length."""
    batch = collect(_entries(10, 30, 11), limit=2, overhead=100)

    assert names(batch) == ["0", "2"]


def test_only_a_bounded_part_of_a_long_queue_is_read() -> None:
    """Forming a batch reads eight batches' worth of entries, so its cost does not grow with the queue."""
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
    """Entries of equal length need no padding."""
    ratio = padding_ratio(_entries(7, 7))

    assert ratio == 0.0


def test_padding_ratio_is_the_share_of_padding() -> None:
    """Lengths 2 and 8 fill 10 of 16 positions."""
    ratio = padding_ratio(_entries(2, 8))

    assert ratio == pytest.approx(6 / 16)
