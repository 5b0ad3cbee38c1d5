"""Searches vectors that have no index, such as the output of `embed-dataset`: exactly, in memory."""

from __future__ import annotations

from alignserve.datasets.sources import SourceOptions
from alignserve.search.exact import ExactStore
from alignserve.search.finding import find_sources
from alignserve.search.store import Entry


def read_vectors(place: str) -> tuple[ExactStore, int] | None:
    """Returns a store of the vectors at a place, and the number of rows without one.

    All of them are kept in memory: 2 kB for a row of 512 numbers, and its columns.

    Returns:
        `None` if it is neither the output of `embed-dataset` nor a Parquet file with a column of vectors.

    Raises:
        VectorsError: The files cannot be read, or a job has not finished writing them.
        ValueError: They do not say which model made the vectors.
    """
    found = find_sources([place], None)
    if not found.vectors:
        return None
    spaces = found.spaces(None)
    (space,) = spaces
    if not space.fingerprint:
        raise ValueError(
            f"the vectors of {place} do not say which model made them; "
            f"alignserve index {place} --to STORE --fingerprint F makes a store of them"
        )
    store = ExactStore(
        fingerprint=space.fingerprint,
        model=space.model,
        embedding_dimension=space.dimension,
        compaction=space.compaction,
    )
    missing = 0
    for source in found.open(SourceOptions(), spaces, space, column=None, key_prefix=""):
        for one in source.rows():
            if one.embedding is None:
                missing += 1
            else:
                store.put([Entry(one.row.key, one.embedding, one.row.columns)])
    return store, missing
