"""What search needs of a store of embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray


ColumnKind: TypeAlias = Literal["string", "number", "boolean"]
"""What the values of a column are; any of them may be `None`."""


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
        fingerprint: Of the model; the store takes no others, and answers queries of no others.
        embedding_dimension: Of its vectors.
    """

    fingerprint: str
    embedding_dimension: int

    def count(self) -> int:
        """Returns the number of rows."""

    def put(self, entries: Iterable[Entry]) -> None:
        """Adds rows; rows with the same keys are replaced."""

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes rows; keys that are not there do no harm."""

    def get(self, keys: Sequence[str]) -> list[Entry]:
        """Returns the rows with these keys, in this order; keys that are not there are left out."""

    def columns(self) -> Mapping[str, ColumnKind]:
        """Returns the columns that `where` can name."""

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
