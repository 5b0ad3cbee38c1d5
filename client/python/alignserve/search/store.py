"""What search needs of a store of embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from alignserve.search.compact import Compaction

ColumnKind: TypeAlias = Literal["string", "number", "boolean"]
"""What the values of a column are; any of them may be `None`."""

BOOKKEEPING = "alignserve."
"""Columns whose names start so are kept for programs: hits do not have them, and filters cannot name them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of a store.

    Attributes:
        key: Unique in the store.
        embedding: (dim,) float32, L2-normalized.
        columns: Metadata by name: strings, numbers, booleans or `None`.
    """

    key: str
    embedding: NDArray[np.float32]
    columns: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Hit:
    """A row that was found, with its cosine similarity to the query."""

    key: str
    similarity: float
    columns: Mapping[str, Any]


class Store(Protocol):
    """A store of the embeddings of one model.

    Attributes:
        fingerprint: Of the model, or of its vectors made compact; the store takes no others, and answers
            queries of no others.
        model: Its id, for people.
        embedding_dimension: Of its vectors.
        compaction: How its vectors were made compact, and queries are too; `None` for the model's own.
    """

    fingerprint: str
    model: str
    embedding_dimension: int
    compaction: Compaction | None

    def count(self) -> int:
        """Returns the number of rows."""

    def put(self, entries: Iterable[Entry]) -> None:
        """Adds rows; rows with the same keys are replaced.

        Columns that the store lacks are added to it.

        Raises:
            StoreError: An embedding has the wrong length, NaN or only zeros, or a value does not fit its
                column; or the store was not opened for writing.
        """

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes rows; keys that are not there do no harm."""

    def get(self, keys: Sequence[str]) -> list[Entry]:
        """Returns the rows with these keys, in this order; keys that are not there are left out."""

    def columns(self) -> Mapping[str, ColumnKind]:
        """Returns the columns that `where` can name."""

    def values(
        self, columns: Sequence[str], keys: Sequence[str] | None = None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields the keys of rows with some of their columns, in no particular order, without embeddings.

        Args:
            columns: Those that the store lacks are `None`.
            keys: Only rows with these keys.
        """

    def entries(self) -> Iterator[Entry]:
        """Yields all rows, in no particular order, as they were when it began."""

    def optimize(self) -> None:
        """Makes searches fast after rows were added: compacts files, and builds or extends the index.

        Rows that are not in the index yet are found all the same.
        """

    def search(
        self, query: NDArray[np.float32], top_k: int, where: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """Returns the rows with the highest cosine similarity, best first; `where` selects rows before that.

        Args:
            query: (dim,), of any length but 0.
            top_k: Above the number of rows, all of them are returned.
            where: Conditions that rows must meet, by column; see `alignserve.search.filters`.
        """

    def close(self) -> None:
        """Closes the store."""
