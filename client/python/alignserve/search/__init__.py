"""Search by image and text: stores of embeddings, and queries over them.

Needs the extra `search`: `pip install 'alignserve[search]'`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from alignserve.search.errors import (
    NoStoreError,
    OtherModelError,
    StoreBusyError,
    StoreError,
    StoreExistsError,
)
from alignserve.search.store import ColumnKind, Entry, Hit, Store

if TYPE_CHECKING:
    from alignserve.search.compact import Compaction

__all__ = [
    "ColumnKind",
    "Entry",
    "Hit",
    "NoStoreError",
    "OtherModelError",
    "Store",
    "StoreBusyError",
    "StoreError",
    "StoreExistsError",
    "create_store",
    "open_store",
]


def open_store(
    path_or_url: str | os.PathLike[str], *, fingerprint: str | None = None, for_writing: bool = False
) -> Store:
    """Opens a store; any number of processes can read it, also while one writes.

    Args:
        path_or_url: A folder, or the URL of one on an object store (`s3://`, `gs://`, `az://`) or of a
            LanceDB server (`db://`).
        fingerprint: Of the model of the queries or the new rows; the store must have the same.
        for_writing: Rows will be put or deleted. A folder has one writer at a time.

    Raises:
        NoStoreError: There is none.
        OtherModelError: It has another fingerprint.
        StoreBusyError: Another process writes to it.
        StoreError: It is damaged, or of a later version.
    """
    from alignserve.search.stores import lance  # imported late: a query's checks need no engine

    return lance.open_store(os.fspath(path_or_url), fingerprint=fingerprint, for_writing=for_writing)


def create_store(
    path_or_url: str | os.PathLike[str],
    *,
    fingerprint: str,
    model: str,
    embedding_dimension: int,
    compaction: Compaction | None = None,
) -> Store:
    """Creates an empty store and opens it for writing.

    Args:
        path_or_url: As for `open_store`; a folder must be new or empty.
        fingerprint: Of the model of its embeddings.
        model: Its id, for people.
        embedding_dimension: Of its embeddings.
        compaction: How they are made compact; fingerprint and dimension are then those of compact vectors.

    Raises:
        StoreExistsError: There is a store already, or the folder has other files.
    """
    from alignserve.search.stores import lance

    return lance.create_store(
        os.fspath(path_or_url),
        fingerprint=fingerprint,
        model=model,
        embedding_dimension=embedding_dimension,
        compaction=compaction,
    )
