"""The layouts in which a job writes its shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from alignserve.datasets.opened import OpenRow


@dataclass(frozen=True, slots=True)
class Drafts:
    """The files of a shard, complete but under other names.

    Attributes:
        files: By final name in the output folder.
        rows: In each of them.
    """

    files: Mapping[str, Path]
    rows: int


class Sink(Protocol):
    """Writes shards in a layout.

    Attributes:
        columns: Names of the columns that it writes, for the manifest.
    """

    columns: Sequence[str]

    def write(self, rows: Sequence[OpenRow], stem: str, draft: Callable[[], Path]) -> Drafts:
        """Writes the rows that have not failed; without any, no file.

        A row with a value that does not fit its column fails.

        Args:
            rows: Of a shard.
            stem: Numbers the shard in the names of its files.
            draft: Returns a path for a file.

        Raises:
            OSError: The disk is full, for example.
        """
