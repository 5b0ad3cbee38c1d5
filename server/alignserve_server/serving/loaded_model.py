"""A model in service: the batcher, engine and watchdog around one encoder, started and stopped as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from alignserve_server.api.readiness import Readiness
from alignserve_server.batching.admission import QueueLimits
from alignserve_server.batching.batcher import Batcher
from alignserve_server.batching.engine import Engine
from alignserve_server.batching.local_backend import CacheBytes, LocalBackend
from alignserve_server.batching.observer import BatchObserver
from alignserve_server.batching.preprocess_pool import PreprocessPool
from alignserve_server.batching.preprocessor import Preprocessor
from alignserve_server.batching.scheduler import Scheduler
from alignserve_server.host.cores import cpu_count
from alignserve_server.host.daemon_thread import in_daemon_thread
from alignserve_server.model.encoder import Encoder
from alignserve_server.observability.gpu import watch_gpu
from alignserve_server.observability.logs import get_logger
from alignserve_server.observability.metrics import Metrics
from alignserve_server.serving.loading import BatchSizes, run_once
from alignserve_server.serving.watchdog import StallPolicy, Watchdog
from alignserve_server.settings import Settings

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model and everything that runs it. `start` returns one that accepts work immediately."""

    encoder: Encoder
    lanes: int
    batch_sizes: BatchSizes
    batcher: Batcher
    pool: PreprocessPool
    engine: Engine
    watchdog: Watchdog

    @classmethod
    def start(
        cls,
        settings: Settings,
        encoder: Encoder,
        batch_sizes: BatchSizes,
        readiness: Readiness,
        metrics: Metrics,
        observer: BatchObserver,
    ) -> LoadedModel:
        """Starts the lanes and builds the rest around them; the watchdog does not watch yet."""
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
        decode_threads = settings.decode_threads or cpu_count()
        pool = PreprocessPool(decode_threads)
        limits = QueueLimits(settings.max_queue_size, settings.max_queue_bytes)
        caches = CacheBytes(settings.image_cache_bytes, settings.text_cache_bytes)
        engine = Engine(
            Preprocessor(encoder, pool, observer, decode_threads=decode_threads),
            LocalBackend(encoder.info, batcher, observer, limits, caches),
            observer,
            limits,
            label_cache_size=settings.label_cache_size,
        )
        watchdog = Watchdog(
            readiness,
            batcher,
            pool,
            metrics,
            probe=lambda: in_daemon_thread(partial(run_once, encoder)),
            policy=StallPolicy(settings.stall_timeout_seconds, settings.stall_exit_seconds),
        )
        return cls(encoder, lanes, batch_sizes, batcher, pool, engine, watchdog)

    def publish(self, metrics: Metrics, server_version: str) -> None:
        """Sets the metrics that describe the model and its device."""
        info = self.encoder.info
        metrics.model_info.labels(
            info.model_id, info.fingerprint, info.runtime, info.dtype, info.device, server_version
        ).set(1)
        metrics.model_min_cosine.set(info.min_cosine_similarity)
        metrics.device_memory_bytes.set_function(lambda: self.encoder.device_memory_bytes)
        if self.encoder.gpu_uuid is not None:
            watch_gpu(self.encoder.gpu_uuid, metrics)

    async def stop(self, timeout_seconds: float) -> None:
        """Stops the lanes, waiting at most the timeout for running batches, and everything else."""
        if not await self.batcher.stop(timeout_seconds):
            _log.warning("lane_still_running")
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.engine.close()


def _note_widened(batch_sizes: BatchSizes, metrics: Metrics, modality: str, size: int) -> None:
    """Records a larger batch that has proved faster while serving."""
    batch_sizes.widen(modality, size)
    metrics.max_batch_size.labels(modality).set(size)
    _log.info("max_batch_size_raised", modality=modality, max_batch_size=size)
