"""What a server serves: an engine, the threads that prepare inputs, and a watchdog, started as one.

The model itself runs in the same process (`LoadedModel`) or in a device process (`front_server`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from alignserve_server.api.readiness import Readiness
from alignserve_server.batching.backend import InferenceBackend
from alignserve_server.batching.engine import Engine
from alignserve_server.batching.observer import BatchObserver
from alignserve_server.batching.preprocess_pool import PreprocessPool
from alignserve_server.batching.preprocessor import InputReader, Preprocessor
from alignserve_server.host.cores import cpu_count
from alignserve_server.model.encoder import Encoder
from alignserve_server.observability.metrics import Metrics
from alignserve_server.serving.loading import BatchSizes
from alignserve_server.serving.running_model import RunningModel, queue_limits
from alignserve_server.serving.watchdog import StallPolicy, Watchdog
from alignserve_server.serving.watched import Watched, WatchedDecoding
from alignserve_server.settings import Settings


@dataclass(frozen=True, slots=True)
class InputSide:
    """The engine of a process that takes calls, and the threads that prepare their inputs."""

    pool: PreprocessPool
    engine: Engine

    @classmethod
    def start(
        cls, settings: Settings, reader: InputReader, backend: InferenceBackend, observer: BatchObserver
    ) -> InputSide:
        """Starts the threads in front of a backend."""
        decode_threads = settings.decode_threads or cpu_count()
        pool = PreprocessPool(decode_threads)
        engine = Engine(
            Preprocessor(reader, pool, observer, decode_threads=decode_threads),
            backend,
            observer,
            queue_limits(settings),
            label_cache_size=settings.label_cache_size,
        )
        return cls(pool, engine)

    def watched(self) -> WatchedDecoding:
        """Returns what the watchdog watches."""
        return WatchedDecoding(self.pool)

    def stop(self) -> None:
        """Stops the threads, without waiting for them."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.engine.close()


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in this process, and all in front of it. `start` returns one that accepts work immediately."""

    running: RunningModel
    inputs: InputSide
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
        running = RunningModel.start(settings, encoder, batch_sizes, metrics, observer)
        inputs = InputSide.start(settings, encoder, running.backend, observer)
        watched: list[Watched] = [running.watched(), inputs.watched()]
        watchdog = watchdog_of(settings, watched, readiness, metrics, running.batcher.device_lost)
        return cls(running, inputs, watchdog)

    @property
    def engine(self) -> Engine:
        """Embeds and classifies for all callers."""
        return self.inputs.engine

    def facts(self) -> dict[str, object]:
        """Returns the fields of the event `ready`."""
        return self.running.facts()

    async def watch(self) -> None:
        """Watches lanes and decoding; returns when a stall is unrecoverable."""
        await self.watchdog.run()

    async def stop(self, timeout_seconds: float) -> None:
        """Stops the lanes, waiting at most the timeout for running batches, and everything else."""
        await self.running.stop(timeout_seconds)
        self.inputs.stop()


def watchdog_of(
    settings: Settings,
    watched: list[Watched],
    readiness: Readiness,
    metrics: Metrics,
    lost: asyncio.Event | None = None,
) -> Watchdog:
    """Returns a watchdog with the policy that is set, for work that may be `lost`."""
    policy = StallPolicy(settings.stall_timeout_seconds, settings.stall_exit_seconds)
    return Watchdog(readiness, watched, metrics, policy, lost)
