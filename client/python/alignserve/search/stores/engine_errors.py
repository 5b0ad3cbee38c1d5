"""What the engine raises where a file of a store is damaged or cannot be written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alignserve.search.errors import StoreError


@contextmanager
def told_of(place: str) -> Iterator[None]:
    """Raises `StoreError` for the engine's own errors, which are all `RuntimeError`.

    Args:
        place: Of the store.
    """
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition(", /")[0]  # the rest is a place in the engine's source
        raise StoreError(
            f"the store {place} cannot be read or written: {reason}; if files of it are damaged, restore it, "
            "or index into a new store"
        ) from error
