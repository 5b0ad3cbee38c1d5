"""Cuts a source file into shards, from where an earlier run has left it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from alignserve.datasets.output import FileProgress, OutputDiffersError
from alignserve.datasets.row import Row
from alignserve.datasets.source import BrokenSourceError, Cursor, SourceFile


@dataclass(frozen=True, slots=True)
class ShardEnd:
    """The end of a shard, behind its rows.

    Attributes:
        shard: Its number in the source file.
        start: Position of its first row.
        end: Position behind its last row.
        rows: Number of its rows.
        is_last: Whether the source file ends there.
        broken: Why the source file cannot be read on, or `None`.
    """

    shard: int
    start: Cursor
    end: Cursor
    rows: int
    is_last: bool = False
    broken: str | None = None


def read_shards(file: SourceFile, progress: FileProgress, rows_per_shard: int) -> Iterator[Row | ShardEnd]:
    """Yields the rows of a source file that are left to do, and a `ShardEnd` behind those of each shard.

    Raises:
        OutputDiffersError: The source has other rows than in the earlier run.
    """
    for gap in progress.gaps:
        yield from _cut(file, gap.shard, gap.start, gap.end, rows_per_shard)
    if not progress.is_complete:
        for each in _cut(file, progress.next_shard, progress.cursor, None, rows_per_shard):
            if isinstance(each, ShardEnd) and not each.rows and each.broken and progress.broken:
                return  # it broke off here before, which its last record says
            yield each


def _cut(
    file: SourceFile, shard: int, start: Cursor, until: Cursor | None, rows_per_shard: int
) -> Iterator[Row | ShardEnd]:
    """Yields rows up to a position, or to the end of the file, and the ends of their shards."""
    position, count, broken = start, 0, None
    rows = file.rows(start)
    try:
        while position != until:
            row, cursor = next(rows, (None, position))
            if row is None:
                break
            if count == rows_per_shard:
                yield ShardEnd(shard, start, position, count)
                shard, start, count = shard + 1, position, 0
            yield row
            position, count = cursor, count + 1
    except BrokenSourceError as error:
        broken = str(error)
    if until is not None and position != until:
        raise OutputDiffersError(
            f"source {file.name} has other rows than before: its position {until} is not behind a row"
            + (f": {broken}" if broken else "")
        )
    is_last = until is None and broken is None
    yield ShardEnd(shard, start, position, count, is_last, broken)
