"""A random sample of the rows of a store, with the inputs that their columns name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignserve.datasets.paths import path_of
from alignserve.datasets.row import Row
from alignserve.search.compact import Compaction
from alignserve.search.pictures import PATH_COLUMN
from alignserve.search.store import Entry, Store
from alignserve.search.vectors import VectorsError, normalized
from alignserve.search.verification import StoredSample, bound_of

_TEXT_COLUMN = "text"


@dataclass(frozen=True, slots=True)
class EntrySample:
    """Rows that were drawn from a store.

    Attributes:
        rows: Number of rows of the store.
        fingerprint: Of the store.
        entries: The rows that were drawn.
        compaction: Of the store, or `None`.
    """

    rows: int
    fingerprint: str
    entries: tuple[Entry, ...]
    compaction: Compaction | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        """Returns what rows were embedded from: the image of a row that has one, else its text."""
        return tuple(sorted({_modality(entry) for entry in self.entries}))

    def stored(self) -> StoredSample:
        """Returns the vectors, to compare others with."""
        vectors = {(entry.key, _modality(entry)): normalized(entry.embedding) for entry in self.entries}
        bound = bound_of(self.compaction.dtype if self.compaction else "")
        return StoredSample(self.rows, len(self.entries), self.fingerprint, vectors, bound, self.compaction)

    def kept_inputs(self) -> Iterator[Row]:
        """Returns the rows with the files and texts that their columns name.

        Raises:
            VectorsError: No row names any. The message says how to give them.
        """
        if self.entries and not any(map(_has_input, self.entries)):
            raise VectorsError(
                f"the store keeps neither the files nor the texts of its rows (columns {PATH_COLUMN} and "
                f"{_TEXT_COLUMN}); give what was indexed with --source"
            )
        return map(_row, self.entries)


def draw_entries(store: Store, count: int, seed: int) -> EntrySample:
    """Draws rows of a store at random without repetition, in memory that does not depend on their number."""
    rng = np.random.default_rng(seed)
    keys = (key for key, _ in store.values([]))
    chosen = list(itertools.islice(keys, count))
    for number, key in enumerate(keys, start=count + 1):  # reservoir sampling
        place = int(rng.integers(number))
        if place < count:
            chosen[place] = key
    return EntrySample(store.count(), store.fingerprint, tuple(store.get(chosen)), store.compaction)


def is_store(place: str) -> bool:
    """Returns whether a place is a store rather than a folder of vectors."""
    return "://" in place or (Path(place) / "store.json").is_file()


def _modality(entry: Entry) -> str:
    return "image" if entry.columns.get(PATH_COLUMN) or not entry.columns.get(_TEXT_COLUMN) else "text"


def _has_input(entry: Entry) -> bool:
    return bool(entry.columns.get(PATH_COLUMN) or entry.columns.get(_TEXT_COLUMN))


def _row(entry: Entry) -> Row:
    path: Any = entry.columns.get(PATH_COLUMN)
    if path:
        return Row(entry.key, image=path_of(str(path)))
    return Row(entry.key, text=entry.columns.get(_TEXT_COLUMN))
