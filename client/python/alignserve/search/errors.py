"""Why a store cannot be opened, read or written."""

from __future__ import annotations


class StoreError(Exception):
    """A store cannot do what it is asked to; the message says why, and what to do."""


class NoStoreError(StoreError):
    """There is no store at this place."""


class StoreExistsError(StoreError):
    """There is a store, or something else, at the place for a new one."""


class OtherModelError(StoreError):
    """A store has the embeddings of another model; vectors of different models cannot be compared."""


class StoreBusyError(StoreError):
    """Another process is writing to the store."""
