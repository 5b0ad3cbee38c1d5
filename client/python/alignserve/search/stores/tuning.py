"""How tables are indexed and searched; client/docs/search.md has the figures behind the constants.

Up to 20,000 rows, every row is compared. Above, an index has each vector in 4 bits per number (RaBitQ). A
query is compared with all of these codes, and the best candidates are ranked again by the vectors themselves.
Only reading the partitions of the index nearest to the query would be faster, but queries by text lie outside
the cone of the images: their nearest rows are spread over many partitions.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignserve.search.stores.columns import EMBEDDING, KEY
from alignserve.search.stores.quiet_lancedb import BTree, IvfRq

EXACT_ROWS = 20_000
"""Up to this number of candidates, a search compares all of them."""

_VECTOR_INDEX, _KEY_INDEX = "embedding_rq", "key_btree"
_BITS = 4  # per number
_ROWS_PER_PARTITION = 16_384
_TRAINING_ROWS, _TRAINING_ROUNDS = 128, 10  # of k-means, the former for each partition
_ALL_PARTITIONS = 1 << 20
_CANDIDATES = 10  # times the rows wanted, to be ranked again
_LEAST_CANDIDATES_OF_BITS = 1000  # of 100, texts find a fifth less; client/docs/vectors.md
_MAX_INDEXED_TOP_K = 1000  # above, ranking the candidates again costs as much as comparing all rows


def optimize(table: Any, rows: int, kept_versions: timedelta, *, is_bits: bool = False) -> None:
    """Compacts files, removes old versions, and builds or extends the indexes of a table.

    Bits have no index: comparing all of them reads less than an index of floats does.
    """
    table.optimize(cleanup_older_than=kept_versions)
    if rows <= EXACT_ROWS:
        return
    names = _index_names(table)
    if _KEY_INDEX not in names:
        table.create_index(KEY, config=BTree(), name=_KEY_INDEX)
    if _VECTOR_INDEX not in names and not is_bits:
        config = IvfRq(
            distance_type="dot",
            num_bits=_BITS,
            num_partitions=math.ceil(rows / _ROWS_PER_PARTITION),
            sample_rate=_TRAINING_ROWS,
            max_iterations=_TRAINING_ROUNDS,
        )
        table.create_index(EMBEDDING, config=config, name=_VECTOR_INDEX)


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
    if candidates <= EXACT_ROWS or top_k > _MAX_INDEXED_TOP_K or _VECTOR_INDEX not in _index_names(table):
        return query.bypass_vector_index()
    return query.nprobes(_ALL_PARTITIONS).refine_factor(_CANDIDATES)


def searched_bits(table: Any, bits: NDArray[np.generic], top_k: int, condition: str | None) -> Any:
    """Returns the query for candidates by Hamming distance, to be ranked again.

    Args:
        table: Of vectors of bits.
        bits: (dim / 8,) of the query.
        top_k: Number of rows wanted.
        condition: That rows must meet first.
    """
    wanted = max(_LEAST_CANDIDATES_OF_BITS, _CANDIDATES * top_k)
    query = table.search(bits, vector_column_name=EMBEDDING).distance_type("hamming").limit(wanted)
    return query if condition is None else query.where(condition, prefilter=True)


def _index_names(table: Any) -> set[str]:
    return {index.name for index in table.list_indices()}
