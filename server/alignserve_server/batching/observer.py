"""The events that batching reports, so that it does not depend on metrics and traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from alignserve_server.observability.batch_report import BatchReport

ItemOutcome = Literal["ok", "failed", "cancelled", "expired"]
SplitReason = Literal["error", "out_of_memory"]


class ModalityObserver(Protocol):
    """Notified of the items of one modality, on the event loop's thread unless a method says otherwise."""

    def accepted(self, caller: str, items: int) -> None:
        """Counts items of a caller that were admitted and are now in flight."""
        ...

    def ended(self, items: int, outcome: ItemOutcome) -> None:
        """Counts items that are no longer in flight."""
        ...

    def preprocessed(self, seconds: float, exemplar: dict[str, str] | None) -> None:
        """Records how long a call's items took to decode or tokenize; `exemplar` links to the call."""
        ...

    def coalesced(self) -> None:
        """Counts an item that shares the entry of an equal item."""
        ...

    def cache_looked_up(self, hits: int, misses: int) -> None:
        """Counts cache hits and misses. Called on any thread, one call at a time."""
        ...

    def watch_cache(self, entries: Callable[[], int], size_bytes: Callable[[], int]) -> None:
        """Takes thread-safe functions that read the size of the embedding cache."""
        ...

    def watch_queue(self, entries: Callable[[], int], size_bytes: Callable[[], int]) -> None:
        """Takes thread-safe functions that read the size of the queue."""
        ...


class BatchObserver(Protocol):
    """Notified of batching events, on the event loop's thread unless a method says otherwise."""

    def of(self, modality: str) -> ModalityObserver:
        """Returns the observer of one modality's items."""
        ...

    def waiting(self, caller: str, items: int) -> None:
        """Records a change in the number of a caller's items that wait for a batch."""
        ...

    def tokenized(self, tokens: int, unknown_tokens: int) -> None:
        """Counts the tokens of texts and label prompts, and how many of them are unknown tokens."""
        ...

    def labels_looked_up(self, hits: int, misses: int, coalesced: int) -> None:
        """Counts labels that were in the cache, must be embedded, or share another call's embedding."""
        ...

    def watch_label_cache(self, entries: Callable[[], int]) -> None:
        """Takes a thread-safe function that reads the size of the label cache."""
        ...

    def has_lanes(self, lanes: int) -> None:
        """Records how many batches can run at once."""
        ...

    def batch_ended(self, report: BatchReport) -> None:
        """Records a batch that a lane has run, before any of its callers resumes."""
        ...

    def batch_split(self, reason: SplitReason) -> None:
        """Counts a batch that failed as a whole and is retried in halves. Called on a lane's thread."""
        ...
