"""A model at work: its lanes, queues and caches behind one `InferenceBackend`, for any number of fronts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from alignserve_server.batching.admission import QueueLimits
from alignserve_server.batching.batcher import Batcher
from alignserve_server.batching.local_backend import CacheBytes, LocalBackend
from alignserve_server.batching.observer import BatchObserver
from alignserve_server.batching.scheduler import Scheduler
from alignserve_server.host.daemon_thread import in_daemon_thread
from alignserve_server.model.encoder import Encoder
from alignserve_server.observability.gpu import watch_gpu
from alignserve_server.observability.logs import get_logger
from alignserve_server.observability.metrics import Metrics
from alignserve_server.serving.loading import BatchSizes, run_once
from alignserve_server.serving.watched import WatchedLanes
from alignserve_server.settings import Settings

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RunningModel:
    """A model and the lanes that run it. `start` returns one that accepts work immediately."""

    encoder: Encoder
    lanes: int
    batch_sizes: BatchSizes
    batcher: Batcher
    backend: LocalBackend

    @classmethod
    def start(
        cls,
        settings: Settings,
        encoder: Encoder,
        batch_sizes: BatchSizes,
        metrics: Metrics,
        observer: BatchObserver,
    ) -> RunningModel:
        """Starts the lanes, and puts queues and caches in front of them."""
        lanes = settings.lanes or encoder.lanes
        for modality, size in batch_sizes.as_dict().items():
            metrics.max_batch_size.labels(modality).set(size)
        batcher = Batcher(
            encoder,
            Scheduler(batch_sizes.policies(), settings.max_queue_delay_seconds, encoder.lanes_per_modality),
            observer,
            lanes=lanes,
            on_widened=partial(_note_widened, batch_sizes, metrics),
        )
        batcher.start()
        caches = CacheBytes(settings.image_cache_bytes, settings.text_cache_bytes)
        backend = LocalBackend(encoder.info, batcher, observer, queue_limits(settings), caches)
        return cls(encoder, lanes, batch_sizes, batcher, backend)

    def watched(self) -> WatchedLanes:
        """Returns what the watchdog watches."""
        return WatchedLanes(self.batcher, lambda: in_daemon_thread(partial(run_once, self.encoder)))

    def publish(self, metrics: Metrics, server_version: str) -> None:
        """Sets the metrics that describe the model and its device."""
        info = self.encoder.info
        metrics.model_info.labels(
            info.model_id, info.fingerprint, info.runtime, info.dtype, info.device, server_version
        ).set(1)
        metrics.model_min_cosine.set(info.min_cosine_similarity)
        metrics.device_memory_bytes.set_function(lambda: self.encoder.device_memory_bytes)
        if (gpu := self.encoder.gpu) is not None:
            watch_gpu(gpu.uuid, metrics)
            metrics.gpu_info.labels(gpu.uuid, gpu.kernels).set(1)
            for modality, count in gpu.graphs.items():
                metrics.cuda_graphs.labels(modality).set(count)

    def facts(self) -> dict[str, object]:
        """Returns the fields of the event `ready`."""
        info, gpu = self.encoder.info, self.encoder.gpu
        on_gpu = {} if gpu is None else {"cuda_kernels": gpu.kernels, "cuda_graphs": dict(gpu.graphs)}
        return {
            "model_id": info.model_id,
            "fingerprint": info.fingerprint,
            "runtime": info.runtime,
            "dtype": info.dtype,
            "device": info.device,
            "min_cosine_similarity": round(info.min_cosine_similarity, 6),
            "lanes": self.lanes,
            "max_batch_size": self.batch_sizes.as_dict(),
            **on_gpu,
        }

    async def stop(self, timeout_seconds: float) -> None:
        """Stops the lanes, waiting at most the timeout for running batches."""
        if not await self.batcher.stop(timeout_seconds):
            _log.warning("lane_still_running")


def queue_limits(settings: Settings) -> QueueLimits:
    """Returns the limits of each modality's queue."""
    return QueueLimits(settings.max_queue_size, settings.max_queue_bytes)


def _note_widened(batch_sizes: BatchSizes, metrics: Metrics, modality: str, size: int) -> None:
    """Records a larger batch that has proved faster while serving."""
    batch_sizes.widen(modality, size)
    metrics.max_batch_size.labels(modality).set(size)
    _log.info("max_batch_size_raised", modality=modality, max_batch_size=size)
