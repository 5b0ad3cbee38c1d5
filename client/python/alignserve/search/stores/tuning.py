"""How tables are indexed and searched, by their size; the figures are in client/docs/search.md."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignserve.search.stores.columns import EMBEDDING, KEY

EXACT_ROWS = 100_000  # up to here every row is compared


def optimize(table: Any, rows: int, kept_versions: timedelta) -> None:
    """Compacts files, removes old versions, and builds or extends the indexes of a table."""
    table.optimize(cleanup_older_than=kept_versions)


def searched(
    table: Any, unit: NDArray[np.float32], top_k: int, condition: str | None, candidates: int
) -> Any:
    """Returns the query for the nearest rows.

    Args:
        table: To search.
        unit: (dim,) of length 1.
        top_k: At most the number of candidates.
        condition: That rows must meet first.
        candidates: Number of rows that meet it.
    """
    query = table.search(unit, vector_column_name=EMBEDDING).distance_type("dot").limit(top_k)
    if condition is not None:
        query = query.where(condition, prefilter=True)
    return query.bypass_vector_index()
