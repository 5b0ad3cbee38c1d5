"""Why a store cannot be opened, read or written."""

from __future__ import annotations

from collections.abc import Mapping


class StoreError(Exception):
    """A store cannot do what it is asked to; the message says why, and what to do."""


class NoStoreError(StoreError):
    """There is no store at this place."""


class StoreExistsError(StoreError):
    """There is a store, or something else, at the place for a new one."""


class OtherModelError(StoreError):
    """A store has the embeddings of another model; vectors of different models cannot be compared."""


class RowsRefusedError(StoreError):
    """Rows cannot be kept: a vector is invalid, or a value does not fit its column. Their batch was not put.

    Attributes:
        reasons: Why, by the keys of the rows.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        key, reason = next(iter(reasons.items()))
        super().__init__(f"row {key!r}: {reason}")
        self.reasons = reasons


class StoreBusyError(StoreError):
    """Another process is writing to the store."""
