"""Every metric of the server, by name. Label values come from closed sets only, never from a client."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from alignserve_server.errors import ServingError, error_kinds
from alignserve_server.modality import MODALITIES
from alignserve_server.observability.caller_metrics import CallerMetrics
from alignserve_server.observability.instruments import (
    Computed,
    Counter,
    FunctionCounter,
    Gauge,
    Histogram,
    Labels,
    Measured,
)

OUTCOMES = ("ok", "failed", "cancelled", "expired")
STATES = ("loading", "serving", "stalled", "draining")
RPC_LABELS = ("grpc_type", "grpc_service", "grpc_method")
PRIORITIES = ("interactive", "bulk")
SIZES = ("single", "batch")

_MODALITY = {"modality": MODALITIES}
_REASONS = sorted({kind.reason for kind in error_kinds() if kind.is_refusal()})

LATENCY_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)
_BATCH_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_RATIO_BUCKETS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75)


class Part(Enum):
    """What a process does for calls, and so which metrics it has."""

    WHOLE = "whole"  # everything
    FRONT = "front"  # takes calls and prepares their inputs
    DEVICE = "device"  # batches inputs and runs the model


class Metrics:
    """The server's metrics, registered in the given registry; others than the part's are not exported."""

    def __init__(self, registry: CollectorRegistry, part: Part = Part.WHOLE) -> None:
        self.registry = registry
        unexported = CollectorRegistry()
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter, never used
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._registry = registry  # of the metrics that are being defined
        self._define_process()
        self._registry = unexported if part is Part.DEVICE else registry
        self.state = server_state(self._registry)
        self._define_rpcs()
        self._define_items()
        self._define_label_cache()
        self._registry = unexported if part is Part.FRONT else registry
        self._define_queue()
        self._define_batches()
        self._define_embedding_cache()
        self.callers = CallerMetrics(
            self.caller_items, self.caller_waiting_items, counts_calls=part is not Part.DEVICE
        )

    def _define_process(self) -> None:
        self.log_lines_dropped = log_lines_dropped(self._registry)
        self.event_loop_lag = self._measured(
            "alignserve_event_loop_lag_seconds", "Event loop lag at the last check."
        )
        self.event_loop_tasks = self._measured(
            "alignserve_event_loop_tasks", "Tasks of the event loop at the last check."
        )

    def _define_rpcs(self) -> None:
        # The usual names and labels of gRPC servers, so that existing dashboards work. `expect_rpcs` creates
        # the series, since the services know their methods and codes.
        self.rpcs_started = self._loop_counter("grpc_server_started", "RPCs started.", RPC_LABELS)
        self.rpcs_handled = self._loop_counter(
            "grpc_server_handled", "RPCs completed.", [*RPC_LABELS, "grpc_code"]
        )
        self.certificate_expiry = self._measured(
            "alignserve_certificate_expiry_timestamp_seconds",
            "Unix time at which the gRPC certificate expires.",
            ["certificate"],
        )
        self.rpc_seconds = self._loop_histogram(
            "grpc_server_handling_seconds",
            "Time from an RPC's start to its end.",
            LATENCY_BUCKETS,
            [*RPC_LABELS, "priority", "size"],
        )

        self.uploads = self._loop_gauge(
            "alignserve_uploads", "Unary requests being received, excluding health checks.", {}
        )
        self.streams = self._loop_gauge("alignserve_streams", "Open streams.", {})
        self.unread_response_bytes = self._loop_gauge(
            "alignserve_unread_response_bytes",
            "Bytes of responses in progress or not yet read by clients.",
            {},
        )

    def _define_items(self) -> None:
        modality = _MODALITY
        self.items_accepted = self._loop_counter(
            "alignserve_items_accepted",
            "Images, texts and label prompts admitted: the sum of items by outcome and in flight.",
            modality,
        )
        self.items = self._loop_counter(
            "alignserve_items",
            "Images and texts completed, by outcome.",
            {**modality, "outcome": OUTCOMES},
        )
        self.items_in_flight = self._loop_gauge(
            "alignserve_items_in_flight", "Images and texts admitted and not yet answered.", modality
        )
        self.rejected = self._loop_counter(
            "alignserve_rejected",
            "Calls and stream items rejected, by reason.",
            {"reason": _REASONS},
        )
        self.caller_items = self._loop_counter(
            "alignserve_caller_items",
            "Images and texts by caller: admitted, or rejected with their call. Unreadable ones are both.",
            ["caller", "outcome"],
        )
        self.preprocess_seconds = self._loop_histogram(
            "alignserve_preprocess_seconds",
            "Time to decode or tokenize a call's items.",
            LATENCY_BUCKETS,
            modality,
        )
        self.tokens = self._loop_counter("alignserve_tokens", "Tokens of texts and label prompts.", {})
        self.unknown_tokens = self._loop_counter(
            "alignserve_unknown_tokens",
            "Tokens for words outside the model's vocabulary.",
            {},
        )

    def _define_queue(self) -> None:
        self.caller_waiting_items = Computed(
            "alignserve_caller_waiting_items",
            "Images and texts waiting for a batch, by caller.",
            ["caller"],
            self._registry,
        )
        self.queue_wait_seconds = self._loop_histogram(
            "alignserve_queue_wait_seconds", "Time an entry waited for its batch.", LATENCY_BUCKETS, _MODALITY
        )
        self.queue_entries = self._measured(
            "alignserve_queue_entries", "Entries waiting for a batch.", ["modality"]
        )
        self.queue_bytes = self._measured(
            "alignserve_queue_bytes",
            "Size of the entries waiting for a batch, as received.",
            ["modality"],
        )

    def _define_batches(self) -> None:
        modality = _MODALITY
        self.batch_size = self._loop_histogram(
            "alignserve_batch_size", "Entries per batch. Its sum counts the entries that reached the device.",
            _BATCH_SIZE_BUCKETS, modality,
        )  # fmt: skip
        self.max_batch_size = self._measured(
            "alignserve_max_batch_size",
            "Maximum batch size, as measured or set.",
            ["modality"],
        )
        self.batch_compute_seconds = self._loop_histogram(
            "alignserve_batch_compute_seconds", "Device time of a batch.", LATENCY_BUCKETS, modality
        )
        self.batch_padding_ratio = prometheus_client.Histogram(
            "alignserve_batch_padding_ratio",
            "Share of a text batch's tokens that are padding.",
            buckets=_RATIO_BUCKETS,
            registry=self._registry,
        )
        self.batch_splits = self._counter(
            "alignserve_batch_splits",
            "Batches that failed and were retried in halves.",
            "reason",
            ("error", "out_of_memory"),
        )
        # Created with the lanes: earlier zeros would count as idle time in a rate.
        self.device_busy_seconds = self._loop_counter(
            "alignserve_device_busy_seconds", "Time that the device spent on batches.", []
        )
        self.lanes = self._measured("alignserve_lanes", "Batches that the device can run concurrently.")
        self.device_memory_bytes = self._measured(
            "alignserve_device_memory_bytes", "Memory that the model holds on its device."
        )
        self.gpu_utilization = self._measured(
            "alignserve_gpu_utilization_ratio",
            "GPU utilization over the last sample period, all processes.",
            ["gpu"],
        )
        self.gpu_memory_used_bytes = self._measured(
            "alignserve_gpu_memory_used_bytes", "Used memory of the GPU, all processes.", ["gpu"]
        )
        self.gpu_memory_bytes = self._measured("alignserve_gpu_memory_bytes", "Memory of the GPU.", ["gpu"])
        self.gpu_info = self._measured(
            "alignserve_gpu_info",
            "Always 1; labels name the GPU and the kernels that embed images.",
            ["gpu", "kernels"],
        )
        self.cuda_graphs = self._measured(
            "alignserve_cuda_graphs", "CUDA graphs, by modality; 0 without them.", ["modality"]
        )
        self.last_forward_timestamp = self._measured(
            "alignserve_last_forward_timestamp_seconds", "Unix time of the last successful batch."
        )
        self.model_info = self._measured(
            "alignserve_model_info",
            "Always 1; labels describe the served model.",
            ["model_id", "fingerprint", "runtime", "dtype", "device", "server_version"],
        )
        self.model_min_cosine = self._measured(
            "alignserve_model_min_cosine_similarity",
            "Minimum cosine similarity to the float32 reference, measured at startup.",
        )

    def _define_label_cache(self) -> None:
        self.label_cache_hits = self._counter("alignserve_label_cache_hits", "Labels found in the cache.")
        self.label_cache_misses = self._counter(
            "alignserve_label_cache_misses", "Labels that had to be embedded."
        )
        self.label_cache_coalesced = self._counter(
            "alignserve_label_cache_coalesced",
            "Labels that waited for another call's embedding of the same label.",
        )
        self.label_cache_entries = self._measured("alignserve_label_cache_entries", "Labels in the cache.")

    def _define_embedding_cache(self) -> None:
        modality = _MODALITY
        self.embedding_cache_hits = self._loop_counter(
            "alignserve_embedding_cache_hits", "Items whose embedding was in the cache.", modality
        )
        self.embedding_cache_misses = self._loop_counter(
            "alignserve_embedding_cache_misses",
            "Items whose embedding was not in the cache, if it is enabled.",
            modality,
        )
        self.embedding_cache_coalesced = self._loop_counter(
            "alignserve_embedding_cache_coalesced",
            "Items that waited for an equal item already in the queue or in the model.",
            modality,
        )
        self.embedding_cache_entries = self._measured(
            "alignserve_embedding_cache_entries", "Embeddings in the cache.", ["modality"]
        )
        self.embedding_cache_bytes = self._measured(
            "alignserve_embedding_cache_bytes", "Memory used by the cache.", ["modality"]
        )

    def expect_rpcs(
        self, labels: Sequence[str], codes: Sequence[str], kinds: Sequence[tuple[str, str]]
    ) -> None:
        """Creates the series of a method.

        Args:
            labels: The values of `RPC_LABELS`.
            codes: The codes that its calls can end with.
            kinds: The priorities and sizes of its calls.
        """
        self.rpcs_started.labels(*labels)
        for code in codes:
            self.rpcs_handled.labels(*labels, code)
        for kind in kinds:
            self.rpc_seconds.labels(*labels, *kind)

    def count_refusal(self, error: ServingError, caller: str | None, items: int) -> None:
        """Counts an error if it rejects a call or stream item, as opposed to reporting that one failed.

        Args:
            error: The error response.
            caller: The caller; None if the method is not part of the API.
            items: Number of images, texts, pairs or queries in the call or item, as far as it was read.
        """
        if error.is_refusal():
            self.rejected.labels(error.reason).inc()
            if caller is not None:
                self.callers.refuse(caller, max(1, items))

    # Metrics that several threads write are prometheus_client's. Those written for each call by the event
    # loop's thread, or by a thread that holds a lock, are from `instruments`.

    def _counter(
        self, name: str, text: str, label: str | None = None, values: Sequence[str] = ()
    ) -> prometheus_client.Counter:
        labels = () if label is None else (label,)
        counter = prometheus_client.Counter(name, text, labels, registry=self._registry)
        for value in values:
            counter.labels(value)
        return counter

    def _measured(self, name: str, text: str, labels: Sequence[str] = ()) -> Measured:
        return Measured(name, text, labels, self._registry)

    def _loop_counter(self, name: str, text: str, labels: Labels) -> Counter:
        return Counter(name, text, labels, self._registry)

    def _loop_gauge(self, name: str, text: str, labels: Labels) -> Gauge:
        return Gauge(name, text, labels, self._registry)

    def _loop_histogram(self, name: str, text: str, bounds: tuple[float, ...], labels: Labels) -> Histogram:
        return Histogram(name, text, labels, self._registry, bounds)


def server_state(registry: CollectorRegistry) -> Computed:
    """Defines the gauge of the server's state; its function should return `state_series`."""
    return Computed(
        "alignserve_state", "1 for the current state of the server, 0 for the others.", ["state"], registry
    )


def state_series(current: str) -> dict[tuple[str, ...], float]:
    """Returns the series of all states."""
    return {(state,): float(state == current) for state in STATES}


def log_lines_dropped(registry: CollectorRegistry) -> FunctionCounter:
    """Defines the counter that every process has."""
    return FunctionCounter(
        "alignserve_log_lines_dropped", "Log lines dropped because the reader was too slow.", registry
    )
