"""Texts that occur too often, counted over all rows before any other rule drops one.

COYO names "thumbnail for" and "image for" as such texts. They have fewer than three words, so a count after
the rule about words would never see them: the count comes first. Every row with a frequent text goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from alignserve.curate.groups import RowGroups, Rows


class TextFrequency:
    """Counts texts exactly, in bounded memory; see `RowGroups` for the arguments."""

    def __init__(self, folder: Path, row_count: int) -> None:
        self._groups = RowGroups(folder, row_count)

    def add(self, texts: Iterable[str], rows: Iterable[int]) -> None:
        """Adds rows with their numbers."""
        self._groups.add(((text,) for text in texts), rows)

    def too_frequent(self, max_count: int) -> Iterator[Rows]:
        """Yields the numbers of all rows whose text occurs more often than `max_count`, in blocks."""
        return self._groups.above(max_count)
