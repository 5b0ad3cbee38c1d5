"""What batching tells of itself while it works, so that it need not know of metrics and traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from alignserve_server.observability.batch_report import BatchReport

ItemOutcome = Literal["ok", "failed", "cancelled", "expired"]
SplitReason = Literal["error", "out_of_memory"]


class ModalityObserver(Protocol):
    """Is told of the items of one modality. On the event loop's thread, unless a method says otherwise."""

    def accepted(self, caller: str, items: int) -> None:
        """Counts items of a caller that were admitted, and are in flight from now on."""
        ...

    def ended(self, items: int, outcome: ItemOutcome) -> None:
        """Counts items that are no longer in flight."""
        ...

    def preprocessed(self, seconds: float, exemplar: dict[str, str] | None) -> None:
        """Takes how long a call's items took to decode or tokenize, and what leads to the call."""
        ...

    def coalesced(self) -> None:
        """Counts an item that shares the entry of an equal one."""
        ...

    def cache_looked_up(self, hits: int, misses: int) -> None:
        """Counts embeddings that were in the cache, and that were not. On any thread, one at a time."""
        ...

    def watch_cache(self, entries: Callable[[], int], size_bytes: Callable[[], int]) -> None:
        """Takes functions, which any thread may call, that read the size of the embedding cache."""
        ...

    def watch_queue(self, entries: Callable[[], int], size_bytes: Callable[[], int]) -> None:
        """Takes functions, which any thread may call, that read the size of the queue."""
        ...


class BatchObserver(Protocol):
    """Is told what happens. On the event loop's thread, unless a method says otherwise."""

    def of(self, modality: str) -> ModalityObserver:
        """Returns what is told of the items of one modality."""
        ...

    def waiting(self, caller: str, items: int) -> None:
        """Takes how many more items of a caller wait for a batch, or, below 0, how many fewer."""
        ...

    def tokenized(self, tokens: int, unknown_tokens: int) -> None:
        """Counts the tokens of texts and label prompts, and those among them that stand for unknown words."""
        ...

    def labels_looked_up(self, hits: int, misses: int, coalesced: int) -> None:
        """Counts labels that were in the cache, are to be embedded, and share another call's embedding."""
        ...

    def watch_label_cache(self, entries: Callable[[], int]) -> None:
        """Takes a function, which any thread may call, that reads the size of the label cache."""
        ...

    def has_lanes(self, lanes: int) -> None:
        """Takes how many batches run at once."""
        ...

    def batch_ended(self, report: BatchReport) -> None:
        """Takes a batch that a lane has run, before any of its callers goes on."""
        ...

    def batch_split(self, reason: SplitReason) -> None:
        """Counts a batch that failed whole and is retried in halves. On a lane's thread."""
        ...
