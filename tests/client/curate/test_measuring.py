"""Stages of measuring: order, rows that cannot be measured, and bounded reading ahead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from alignserve.curate.measuring import passing


def pairs_of(inputs: Iterable[int]) -> Iterator[int]:
    """Doubles numbers, two at a time."""
    waiting = []
    for value in inputs:
        waiting.append(value)
        if len(waiting) == 2:
            yield from (2 * each for each in waiting)
            waiting = []
    yield from (2 * each for each in waiting)


def test_items_without_an_input_keep_their_place() -> None:
    """At the front, in between and at the end."""
    items = [None, 1, None, None, 2, 3, None]

    found = list(passing(items, lambda item: item, pairs_of))

    assert found == [(None, None), (1, 2), (None, None), (None, None), (2, 4), (3, 6), (None, None)]


def test_items_are_read_only_as_far_ahead_as_the_process_reads() -> None:
    """The first result needs two inputs, not all."""
    read = []

    def items() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    found = passing(items(), lambda item: item, pairs_of)

    assert next(found) == (0, 0)
    assert len(read) == 2


def test_nothing_comes_of_nothing() -> None:
    """No items, no results."""
    assert list(passing([], lambda item: item, pairs_of)) == []
