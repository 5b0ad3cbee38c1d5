"""Records the events of batching as metrics, and in the traces of sampled calls."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from alignserve_server.modality import MODALITIES
from alignserve_server.observability.batch_report import BatchReport
from alignserve_server.observability.instruments import Value
from alignserve_server.observability.metrics import OUTCOMES, Metrics
from alignserve_server.observability.tracing import Tracing


class MetricsObserver:
    """The server's `batching.observer.BatchObserver`."""

    def __init__(self, metrics: Metrics, tracing: Tracing) -> None:
        """Looks up all series once, since a look-up costs more than counting.

        Args:
            metrics: Where events are counted.
            tracing: Finds the sampled calls of a batch.
        """
        self._metrics = metrics
        self._tracing = tracing
        self._modalities = {modality: _ModalityObserver(metrics, modality) for modality in MODALITIES}
        self._tokens, self._unknown_tokens = metrics.tokens.labels(), metrics.unknown_tokens.labels()
        self._busy_seconds: Value  # has no series until there are lanes

    def of(self, modality: str) -> _ModalityObserver:
        return self._modalities[modality]

    def waiting(self, caller: str, items: int) -> None:
        self._metrics.callers.wait(caller, items)

    def tokenized(self, tokens: int, unknown_tokens: int) -> None:
        self._tokens.inc(tokens)
        self._unknown_tokens.inc(unknown_tokens)

    def labels_looked_up(self, hits: int, misses: int, coalesced: int) -> None:
        self._metrics.label_cache_hits.inc(hits)
        self._metrics.label_cache_misses.inc(misses)
        self._metrics.label_cache_coalesced.inc(coalesced)

    def watch_label_cache(self, entries: Callable[[], int]) -> None:
        self._metrics.label_cache_entries.set_function(entries)

    def has_lanes(self, lanes: int) -> None:
        self._metrics.lanes.set(lanes)
        self._busy_seconds = self._metrics.device_busy_seconds.labels()

    def batch_ended(self, report: BatchReport) -> None:
        self._modalities[report.modality].batch_ended(report, self._tracing)
        if report.padding_ratio is not None:
            self._metrics.batch_padding_ratio.observe(report.padding_ratio)
        self._busy_seconds.inc(report.device_seconds)
        if report.has_succeeded:
            self._metrics.last_forward_timestamp.set(time.time())

    def batch_split(self, reason: str) -> None:
        self._metrics.batch_splits.labels(reason).inc()


class _ModalityObserver:
    def __init__(self, metrics: Metrics, modality: str) -> None:
        self._callers = metrics.callers
        self._accepted = metrics.items_accepted.labels(modality)
        self._in_flight = metrics.items_in_flight.labels(modality)
        self._ended = {outcome: metrics.items.labels(modality, outcome) for outcome in OUTCOMES}
        self._preprocess_seconds = metrics.preprocess_seconds.labels(modality)
        self._queue_wait_seconds = metrics.queue_wait_seconds.labels(modality)
        self._queue_entries = metrics.queue_entries.labels(modality)
        self._queue_bytes = metrics.queue_bytes.labels(modality)
        self._batch_size = metrics.batch_size.labels(modality)
        self._batch_compute_seconds = metrics.batch_compute_seconds.labels(modality)
        self._cache_hits = metrics.embedding_cache_hits.labels(modality)
        self._cache_misses = metrics.embedding_cache_misses.labels(modality)
        self._coalesced = metrics.embedding_cache_coalesced.labels(modality)
        self._cache_entries = metrics.embedding_cache_entries.labels(modality)
        self._cache_bytes = metrics.embedding_cache_bytes.labels(modality)

    def accepted(self, caller: str, items: int) -> None:
        self._accepted.inc(items)
        self._in_flight.inc(items)
        self._callers.accept(caller, items)

    def ended(self, items: int, outcome: str) -> None:
        self._in_flight.dec(items)
        self._ended[outcome].inc(items)

    def preprocessed(self, seconds: float, exemplar: dict[str, str] | None) -> None:
        self._preprocess_seconds.observe(seconds, exemplar)

    def coalesced(self) -> None:
        self._coalesced.inc()

    def cache_looked_up(self, hits: int, misses: int) -> None:
        if hits:
            self._cache_hits.inc(hits)
        if misses:
            self._cache_misses.inc(misses)

    def watch_cache(self, entries: Callable[[], int], size_bytes: Callable[[], int]) -> None:
        self._cache_entries.set_function(entries)
        self._cache_bytes.set_function(size_bytes)

    def watch_queue(self, entries: Callable[[], int], size_bytes: Callable[[], int]) -> None:
        self._queue_entries.set_function(entries)
        self._queue_bytes.set_function(size_bytes)

    def batch_ended(self, report: BatchReport, tracing: Tracing) -> None:
        self._batch_size.observe(report.size)
        self._batch_compute_seconds.observe(report.device_seconds, tracing.note_batch(report))
        if report.sampled:
            for seconds, reservation in zip(report.queue_seconds, report.sampled, strict=True):
                self._queue_wait_seconds.observe(seconds, tracing.exemplar(reservation))
        else:
            for seconds, entries in Counter(report.queue_seconds).items():  # those of a call are equal
                self._queue_wait_seconds.observe(seconds, times=entries)
