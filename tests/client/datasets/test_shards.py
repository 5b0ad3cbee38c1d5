"""How a source file is cut into shards, and where a resumed run goes on."""

from __future__ import annotations

import pytest
from alignserve.datasets.output import FileProgress, Gap, OutputDiffersError
from alignserve.datasets.row import Row
from alignserve.datasets.shards import ShardEnd, read_shards

from tests.client.datasets.memory import MemoryFile, text_rows


def read(
    count: int, progress: FileProgress | None = None, *, rows_per_shard: int = 3, breaks_at: int | None = None
) -> list[str | ShardEnd]:
    """Returns the keys of rows, and the ends of shards."""
    file = MemoryFile("file", text_rows(count), breaks_at)
    events = read_shards(file, progress or FileProgress(), rows_per_shard)
    return [event.key if isinstance(event, Row) else event for event in events]


@pytest.mark.parametrize(("count", "shards"), [(0, [0]), (2, [2]), (3, [3]), (4, [3, 1]), (6, [3, 3])])
def test_shards_are_full_up_to_the_last(count: int, shards: list[int]) -> None:
    """The last one says that the file ends."""
    ends = [event for event in read(count) if isinstance(event, ShardEnd)]

    assert [end.rows for end in ends] == shards
    assert [end.is_last for end in ends] == [False] * (len(shards) - 1) + [True]
    assert [end.start for end in ends] == [3 * number for number in range(len(shards))]


def test_a_resumed_file_goes_on_behind_its_last_shard() -> None:
    """No row comes twice."""
    assert read(5, FileProgress(cursor=3, next_shard=1)) == [
        "row-3",
        "row-4",
        ShardEnd(1, 3, 5, 2, is_last=True),
    ]


def test_a_complete_file_has_nothing_left() -> None:
    """It is not even opened."""
    assert read(3, FileProgress(cursor=3, next_shard=1, is_complete=True)) == []


def test_gaps_are_read_again_with_their_own_numbers() -> None:
    """A gap of several shards is cut as before."""
    progress = FileProgress(12, 4, is_complete=True, gaps=(Gap(1, 3, 9),))

    assert read(12, progress) == [
        *("row-3", "row-4", "row-5"),
        ShardEnd(1, 3, 6, 3),
        *("row-6", "row-7", "row-8"),
        ShardEnd(2, 6, 9, 3),
    ]


def test_a_gap_with_other_rows_than_before_ends_the_run() -> None:
    """The source has changed without its digest."""
    with pytest.raises(OutputDiffersError, match="other rows than before"):
        read(2, FileProgress(12, 4, is_complete=True, gaps=(Gap(1, 0, 3),)))


def test_a_file_that_breaks_off_ends_its_shard_with_the_reason() -> None:
    """Its whole rows count."""
    assert read(5, breaks_at=1) == ["row-0", ShardEnd(0, 0, 1, 1, broken="file breaks off at row 1")]


def test_a_file_that_still_breaks_off_adds_no_shard() -> None:
    """Resuming again and again changes nothing."""
    assert read(5, FileProgress(1, 1, broken="file breaks off at row 1"), breaks_at=1) == []


def test_a_file_that_was_repaired_goes_on() -> None:
    """The rows behind the break are read."""
    assert read(2, FileProgress(1, 1, broken="file breaks off at row 1")) == [
        "row-1",
        ShardEnd(1, 1, 2, 1, is_last=True),
    ]
