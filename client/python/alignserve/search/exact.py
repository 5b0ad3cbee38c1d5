"""A store in memory that compares a query with every row, for small collections and as a reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alignserve.search.errors import StoreError
from alignserve.search.filters import check_filter, matches
from alignserve.search.store import BOOKKEEPING, ColumnKind, Entry, Hit

if TYPE_CHECKING:
    from alignserve.search.compact import Compaction

_BLOCK_ROWS = 65_536  # compared at once: with 640 numbers, 168 MB
_FIRST_ROWS = 1024


class ExactStore:
    """A store in memory that finds exactly the best rows; it is gone when the process ends.

    Rows of the same similarity are in the order in which their keys were first put.

    Args:
        fingerprint: Of the model.
        embedding_dimension: Of its vectors.
        model: Its id, for people.
        compaction: How the vectors were made compact, or `None`.
    """

    def __init__(
        self,
        *,
        fingerprint: str,
        embedding_dimension: int,
        model: str = "",
        compaction: Compaction | None = None,
    ) -> None:
        self.fingerprint = fingerprint
        self.compaction = compaction
        self.model = model
        self.embedding_dimension = embedding_dimension
        self._embeddings = np.empty((0, embedding_dimension), np.float32)  # (room, dim)
        self._keys: list[str | None] = []  # by row; `None` for a row that was deleted
        self._columns: list[Mapping[str, Any]] = []  # by row
        self._rows: dict[str, int] = {}  # by key
        self._kinds: dict[str, ColumnKind] = {}

    def count(self) -> int:
        """Returns the number of rows."""
        return len(self._rows)

    def put(self, entries: Iterable[Entry]) -> None:
        """Adds rows; rows with the same keys are replaced.

        Raises:
            StoreError: An embedding has the wrong length, NaN or only zeros, or a value does not fit its
                column. The rows before it are stored.
        """
        for entry in entries:
            try:
                vector = self._unit(entry.embedding)
            except ValueError as error:
                raise StoreError(f"row {entry.key!r}: {error}") from None
            self._learn_kinds(entry)
            row = self._rows.get(entry.key)
            if row is None:
                row = self._new_row(entry.key)
            self._embeddings[row] = vector
            self._columns[row] = dict(entry.columns)

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes rows; keys that are not there do no harm."""
        for key in keys:
            row = self._rows.pop(key, None)
            if row is not None:
                self._keys[row] = None

    def get(self, keys: Sequence[str]) -> list[Entry]:
        """Returns the rows with these keys, in this order; keys that are not there are left out."""
        rows = [self._rows[key] for key in keys if key in self._rows]
        return [Entry(str(self._keys[row]), self._embeddings[row].copy(), self._columns[row]) for row in rows]

    def columns(self) -> Mapping[str, ColumnKind]:
        """Returns the columns that `where` can name: those of texts, numbers or booleans."""
        return {name: kind for name, kind in self._kinds.items() if not name.startswith(BOOKKEEPING)}

    def values(
        self, columns: Sequence[str], keys: Sequence[str] | None = None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields the keys of rows with some of their columns; see `Store.values`."""
        chosen = list(self._rows) if keys is None else [key for key in keys if key in self._rows]
        for key in chosen:
            row = self._columns[self._rows[key]]
            yield key, {name: row.get(name) for name in columns}

    def entries(self) -> Iterator[Entry]:
        """Yields all rows, as they were when it began."""
        yield from self.get(list(self._rows))

    def optimize(self) -> None:
        """Does nothing: there is no index."""

    def search(
        self, query: NDArray[np.float32], top_k: int, where: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """Returns the rows with the highest cosine similarity, best first; see `Store.search`.

        Raises:
            FilterError: The filter does not fit the columns.
            ValueError: The query has another dimension or no direction, or `top_k` is below 1.
        """
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; give at least 1")
        unit = self._unit(query)
        allowed = self._allowed(check_filter(where or {}, self.columns()))
        found = [
            _best(self._similarities(rows, unit), rows, top_k)
            for start in range(0, len(allowed), _BLOCK_ROWS)
            if len(rows := allowed[start : start + _BLOCK_ROWS])
        ]
        if not found:
            return []
        similarities, rows = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.lexsort((rows, -similarities))[:top_k]
        return [
            Hit(str(self._keys[row]), min(1.0, max(-1.0, similarity)), _for_people(self._columns[row]))
            for row, similarity in zip(rows[order].tolist(), similarities[order].tolist(), strict=True)
        ]

    def close(self) -> None:
        """Does nothing: there is nothing to close."""

    def _unit(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        exact = np.asarray(vector, np.float64)
        length = float(np.linalg.norm(exact))
        if exact.shape != (self.embedding_dimension,) or not 0 < length < np.inf:
            raise ValueError(f"a vector has {self.embedding_dimension} finite numbers that are not all 0")
        return np.asarray(exact / length, np.float32)

    def _allowed(self, where: Mapping[str, Any]) -> NDArray[np.int64]:
        """Returns the numbers of the rows that meet a filter, in ascending order."""
        if not where and len(self._rows) == len(self._keys):
            return np.arange(len(self._keys))
        rows = (
            row
            for row, (key, columns) in enumerate(zip(self._keys, self._columns, strict=True))
            if key is not None and matches(columns, where)
        )
        return np.fromiter(rows, np.int64)

    def _similarities(self, rows: NDArray[np.int64], unit: NDArray[np.float32]) -> NDArray[np.float32]:
        is_range = rows[-1] - rows[0] + 1 == len(rows)  # then the block is not copied
        block = self._embeddings[rows[0] : rows[-1] + 1] if is_range else self._embeddings[rows]
        return np.asarray(block @ unit, np.float32)

    def _new_row(self, key: str) -> int:
        row = len(self._keys)
        if row == len(self._embeddings):
            room = np.empty((max(_FIRST_ROWS, 2 * row), self.embedding_dimension), np.float32)
            room[:row] = self._embeddings[:row]
            self._embeddings = room
        self._keys.append(key)
        self._columns.append({})
        self._rows[key] = row
        return row

    def _learn_kinds(self, entry: Entry) -> None:
        for name, value in entry.columns.items():
            kind = _kind_of(value)
            if kind is not None and self._kinds.setdefault(name, kind) != kind:
                raise StoreError(
                    f"row {entry.key!r}: column {name!r} has a {self._kinds[name]}, not {value!r}"
                )


def _for_people(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in columns.items() if not name.startswith(BOOKKEEPING)}


def _kind_of(value: Any) -> ColumnKind | None:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return "string" if isinstance(value, str) else None


def _best(
    similarities: NDArray[np.float32], rows: NDArray[np.int64], top_k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns the best rows of a block, with all that are as similar as the last of them."""
    if len(rows) > top_k:
        least = np.partition(similarities, -top_k)[-top_k]
        kept = similarities >= least
        similarities, rows = similarities[kept], rows[kept]
    return similarities, rows
