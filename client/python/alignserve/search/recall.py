"""Recall of an approximate search, measured against exact search while the vectors stream by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOP_K = 10
RERANKED = 100  # candidates of the approximate search that are ranked again with exact vectors

_SAME = 1e-6  # difference of two cosines that float32 cannot tell apart


@dataclass(frozen=True, slots=True)
class Recall:
    """Shares of the true nearest neighbours that were found, from 0 to 1; means over the queries.

    A row that is exactly as near as the last of the true neighbours counts as one of them, so duplicates in
    the data do not lower the recall.

    Attributes:
        at_10: Among the first 10.
        reranked_at_10: Among the first 10, after the first 100 were ranked again with exact vectors.
        queries: Number of queries.
        rows: Number of rows searched.
    """

    at_10: float
    reranked_at_10: float
    queries: int
    rows: int

    def as_data(self) -> dict[str, float | int | None]:
        """Returns the figures as a manifest has them; recall over no query is `None`."""
        return {
            "recall_at_10": round(self.at_10, 4) if self.queries else None,
            "recall_at_10_reranked": round(self.reranked_at_10, 4) if self.queries else None,
            "queries": self.queries,
            "rows": self.rows,
        }


class RecallMeter:
    """Compares an approximate search with an exact one, in memory that does not depend on the number of rows.

    Args:
        queries: Number of queries.
        own_rows: (queries,) the row that each query is a copy of, and which it must not find; -1 for none.
    """

    def __init__(self, queries: int, own_rows: NDArray[np.int64] | None = None) -> None:
        self._own = np.full(queries, -1, np.int64) if own_rows is None else own_rows
        self._exact = np.full((queries, TOP_K), -np.inf, np.float32)
        self._approximate = np.full((queries, RERANKED), -np.inf, np.float32)
        self._exact_of_approximate = np.full((queries, RERANKED), -np.inf, np.float32)
        self._rows = 0

    def add(
        self,
        exact: NDArray[np.float32],
        approximate: NDArray[np.float32],
        numbers: NDArray[np.int64],
    ) -> None:
        """Adds rows.

        Args:
            exact: (queries, rows) similarities by exact search.
            approximate: (queries, rows) similarities by the other search, on any scale.
            numbers: (rows,) of the rows.
        """
        self._rows += len(numbers)
        is_own = self._own[:, None] == numbers[None, :]
        exact = np.where(is_own, -np.inf, exact)
        approximate = np.where(is_own, -np.inf, approximate)
        both = np.concatenate([self._exact, exact], axis=1)
        self._exact = np.take_along_axis(both, _best(both, TOP_K), axis=1)
        both = np.concatenate([self._approximate, approximate], axis=1)
        exacts = np.concatenate([self._exact_of_approximate, exact], axis=1)
        best = _best(both, RERANKED)
        self._approximate = np.take_along_axis(both, best, axis=1)
        self._exact_of_approximate = np.take_along_axis(exacts, best, axis=1)

    def result(self) -> Recall:
        """Returns the recall over the rows so far."""
        bounds = np.min(self._exact, axis=1, where=np.isfinite(self._exact), initial=np.inf)
        is_true = (self._exact_of_approximate >= bounds[:, None] - _SAME) & np.isfinite(
            self._exact_of_approximate
        )
        first = _best(self._approximate, TOP_K)
        true_count = np.isfinite(self._exact).sum(axis=1)
        has_any = true_count > 0
        at_10 = np.take_along_axis(is_true, first, axis=1).sum(axis=1)
        return Recall(
            _mean(np.minimum(at_10, true_count)[has_any] / true_count[has_any]),
            _mean(np.minimum(is_true.sum(axis=1), true_count)[has_any] / true_count[has_any]),
            len(self._own),
            self._rows,
        )


def _best(scores: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Returns (queries, count) positions of the highest scores, in no order."""
    return np.argpartition(scores, scores.shape[1] - count, axis=1)[:, -count:]


def _mean(shares: NDArray[np.float64]) -> float:
    return float(shares.mean()) if shares.size else 0.0
