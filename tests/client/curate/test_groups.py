"""Rows with equal content, found exactly on disk."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from alignserve.curate.frequency import TextFrequency
from alignserve.curate.groups import RowGroups


def rows_of(blocks: object) -> list[int]:
    return sorted(int(row) for block in blocks for row in block)  # type: ignore[attr-defined]


@pytest.mark.parametrize("part_rows", [1, 3, 1 << 20])
def test_frequent_texts_are_counted_exactly(tmp_path: Path, part_rows: int) -> None:
    """A text that occurs N times stays; with N + 1 every one of them goes."""
    texts = [*["thumbnail for"] * 11, *["image for"] * 10, "once", *["Image for"] * 3]
    groups = RowGroups(tmp_path, len(texts), part_rows)
    groups.add([(text,) for text in texts], range(len(texts)))

    assert rows_of(groups.above(10)) == list(range(11))


def test_texts_are_counted_over_all_blocks(tmp_path: Path) -> None:
    """Shards are added one after the other."""
    frequency = TextFrequency(tmp_path, 1000)
    for start in range(0, 1000, 10):
        frequency.add(
            [f"text {number % 90}" for number in range(start, start + 10)], range(start, start + 10)
        )

    counts = Counter(number % 90 for number in range(1000))
    assert rows_of(frequency.too_frequent(11)) == [row for row in range(1000) if counts[row % 90] > 11]


def test_only_rows_that_count_form_groups(tmp_path: Path) -> None:
    """The first row of a group stays; a row that is out is not the first of any."""
    groups = RowGroups(tmp_path, 6, 2)
    groups.add([("a", "x"), ("a", "x"), ("a", "x"), ("b", "x"), ("ax", ""), ("a", "x")], range(6))
    flags = np.array([1, 0, 0, 0, 0, 0], np.uint64)

    assert rows_of(groups.repeated(flags)) == [2, 5]


def test_lengths_are_part_of_content(tmp_path: Path) -> None:
    """('a', 'bc') is not ('ab', 'c')."""
    groups = RowGroups(tmp_path, 2)
    groups.add([("a", "bc"), ("ab", "c")], range(2))

    assert rows_of(groups.repeated(np.zeros(2, np.uint64))) == []


def test_no_rows_have_no_groups(tmp_path: Path) -> None:
    """An empty source has neither frequent texts nor duplicates."""
    groups = RowGroups(tmp_path, 0)
    groups.add([], [])

    assert rows_of(groups.above(0)) == []
