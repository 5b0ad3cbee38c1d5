"""Shards that are being embedded: their rows, in order, with the answers so far."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from alignserve._results import EmbeddingArray
from alignserve.datasets.row import RowFailure
from alignserve.datasets.shards import ShardEnd

Kind: TypeAlias = Literal["image", "text"]
"""A part of a row that can be embedded."""

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(slots=True, eq=False)
class OpenRow:
    """A row of which some parts may still be in flight; its image is gone as soon as it has been sent.

    Attributes:
        key: Of the row.
        text: As the source has it.
        columns: That are kept.
        image_path: Of the file that the image was read from, or `None`; see `paths`.
        failure: Why it has no result, or `None`.
        vectors: (dim,), by kind.
        pending: Parts in flight.
    """

    key: str
    text: str | None
    columns: Mapping[str, Any]
    image_path: str | None = None
    failure: RowFailure | None = None
    vectors: dict[Kind, EmbeddingArray] = field(default_factory=dict)
    pending: int = 0

    def fail(self, failure: RowFailure) -> None:
        """Records why the row fails; the first reason stays."""
        self.failure = self.failure or failure
        self.vectors.clear()


class OpenShard:
    """A shard whose rows are read and embedded.

    Args:
        file: Number of its source file.

    Attributes:
        rows: Those read so far.
        end: Set once all are read.
    """

    def __init__(self, file: int) -> None:
        self.file = file
        self.rows: list[OpenRow] = []
        self.end: ShardEnd | None = None
        self._pending = 0
        self._done = asyncio.Event()

    def begin(self, row: OpenRow) -> None:
        """Adds a row with its parts in flight."""
        self.rows.append(row)
        self._pending += row.pending > 0

    def finish(self, row: OpenRow) -> bool:
        """Counts one more part of a row as done, and returns whether it was the last."""
        row.pending -= 1
        if row.pending:
            return False
        self._pending -= 1
        self._check()
        return True

    def close(self, end: ShardEnd) -> None:
        """Records that all rows were read."""
        self.end = end
        self._check()

    async def wait(self) -> ShardEnd:
        """Returns once every row has its result or failure."""
        await self._done.wait()
        assert self.end is not None  # noqa: S101 — set before `_done`
        return self.end

    def _check(self) -> None:
        if self.end is not None and not self._pending:
            self._done.set()
