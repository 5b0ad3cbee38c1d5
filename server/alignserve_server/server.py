"""One server process: start → load → serve → drain → stop. Wires everything, once."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from wsgiref.simple_server import WSGIServer

import grpc
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from PIL import Image
from prometheus_client import CollectorRegistry, start_http_server

from alignserve_server.batching.batcher import Batcher
from alignserve_server.batching.engine import Engine
from alignserve_server.batching.scheduler import BatchPolicy, Scheduler
from alignserve_server.logs import get_logger
from alignserve_server.metrics import Metrics
from alignserve_server.model.checkpoint import resolve_checkpoint
from alignserve_server.model.encoder import Encoder
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.rpc.convert import RequestLimits
from alignserve_server.rpc.health import SERVICE, Readiness, State
from alignserve_server.rpc.interceptors import ServingInterceptor
from alignserve_server.rpc.servicer import AlignServicer
from alignserve_server.settings import Settings

_log = get_logger(__name__)

LoadEncoder = Callable[[Settings], Encoder]

_CPU_IMAGE_BATCH_SIZE = 4  # larger image batches are slower on a CPU: their activations leave its caches
_TEXT_BATCH_OVERHEAD_TOKENS = 16  # a text forward's fixed cost is about that of so many tokens
_LANES_STOP_SECONDS = 5.0
_REFUSAL_SECONDS = 0.25


class StartupError(Exception):
    """The server cannot start; the message says what to do."""


class Server:
    """A server in this process, on the running event loop."""

    def __init__(self, settings: Settings, load_encoder: LoadEncoder) -> None:
        self._settings = settings
        self._load_encoder = load_encoder
        self._readiness = Readiness()
        self.metrics = Metrics(CollectorRegistry())
        self._limits = _limits(settings)
        self._version = version("alignserve")
        self._servicer = AlignServicer(self._readiness, self._limits, self.metrics, self._version)
        self._grpc = grpc.aio.server(
            interceptors=[ServingInterceptor(self.metrics)], options=_channel_options(settings)
        )
        self._batcher: Batcher | None = None
        self._metrics_server: WSGIServer | None = None
        self._pool = ThreadPoolExecutor(settings.decode_threads or os.cpu_count(), "preprocess")
        self._watchdog: asyncio.Task[None] | None = None
        self.port = 0
        self.metrics_port = 0

    async def start(self) -> None:
        """Opens the ports. Health says NOT_SERVING and calls get MODEL_LOADING until `load` is done.

        Raises:
            StartupError: A port is taken or an address is not this machine's.
        """
        pb_grpc.add_AlignServiceServicer_to_server(self._servicer, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._readiness.servicer, self._grpc)
        if self._settings.reflection:
            names = (SERVICE, "grpc.health.v1.Health", reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._grpc)
        await self._readiness.start()
        try:
            self.port = self._grpc.add_insecure_port(self._settings.listen)
        except RuntimeError as error:
            raise StartupError(
                f"cannot listen on {self._settings.listen}: the port is taken or the address is not this "
                "machine's; choose another with --listen"
            ) from error
        if self._settings.metrics:
            self._start_metrics()
        await self._grpc.start()
        _log.info("listening", listen=self._settings.listen, port=self.port, metrics_port=self.metrics_port)

    async def load(self) -> None:
        """Loads the model, runs it once per modality and reports ready.

        Raises:
            Exception: Whatever loading raises; the server stays NOT_SERVING.
        """
        start = time.perf_counter()
        encoder = await asyncio.to_thread(self._load)
        info = encoder.info
        lanes = self._lanes(info.device)
        self._batcher = Batcher(encoder, self._scheduler(info.device), self.metrics, lanes=lanes)
        self._batcher.start()
        self._servicer.engine = Engine(
            encoder,
            self._batcher,
            self._pool,
            self.metrics,
            max_queue_size=self._settings.max_queue_size,
            max_queue_bytes=self._settings.max_queue_bytes,
            label_cache_size=self._settings.label_cache_size,
        )
        self._publish_model(encoder)
        await self._readiness.enter(State.READY)
        self._watchdog = asyncio.create_task(self._watch(self._batcher))
        _log.info(
            "ready",
            model_id=info.model_id,
            fingerprint=info.fingerprint,
            device=info.device,
            dtype=info.dtype,
            lanes=lanes,
            load_seconds=round(time.perf_counter() - start, 3),
        )

    async def drain(self, delay_seconds: float) -> None:
        """Reports NOT_SERVING and goes on serving for a while, so that balancers look elsewhere first.

        Then refuses new calls for a moment. gRPC itself would cut off those that come while it closes with
        CANCELLED, which no client retries; UNAVAILABLE is retried elsewhere.
        """
        _log.info("draining", delay_seconds=delay_seconds)
        if self._watchdog is not None:
            self._watchdog.cancel()
        await self._readiness.enter(State.DRAINING)
        await asyncio.sleep(delay_seconds)
        await self._readiness.enter(State.STOPPING)
        await asyncio.sleep(min(delay_seconds, _REFUSAL_SECONDS))

    async def stop(self, grace_seconds: float) -> None:
        """Takes no new calls, lets accepted ones finish within the grace, and closes everything."""
        await self._readiness.enter(State.STOPPING)
        self._servicer.drain_streams()
        await self._grpc.stop(grace_seconds)
        if self._batcher is not None and not await self._batcher.stop(_LANES_STOP_SECONDS):
            _log.warning("lane_still_running")
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._metrics_server is not None:
            await asyncio.to_thread(self._metrics_server.shutdown)
            self._metrics_server.server_close()
        _log.info("stopped")

    def _start_metrics(self) -> None:
        host, _, port = self._settings.metrics_listen.rpartition(":")
        try:
            self._metrics_server, _ = start_http_server(int(port), host.strip("[]"), self.metrics.registry)
        except OSError as error:
            raise StartupError(
                f"cannot serve metrics on {self._settings.metrics_listen}: {error.strerror}; choose another "
                "address with --metrics-listen, or --no-metrics"
            ) from error
        self.metrics_port = self._metrics_server.server_port

    def _load(self) -> Encoder:
        encoder = self._load_encoder(self._settings)
        if self._settings.warmup:
            # Straight to the encoder: the counts on /metrics are of callers' traffic alone.
            encoder.encode_images([encoder.preprocess_image(_warmup_image())])
            encoder.encode_texts([encoder.tokenize("a photo of a cat", truncate=True)])
        return encoder

    def _publish_model(self, encoder: Encoder) -> None:
        info = encoder.info
        self.metrics.model_info.labels(
            info.model_id, info.fingerprint, info.runtime, info.dtype, info.device, self._version
        ).set(1)
        self.metrics.device_memory_bytes.set_function(lambda: encoder.device_memory_bytes)

    def _lanes(self, device: str) -> int:
        default = (os.cpu_count() or 1) // self._settings.threads_per_lane if device == "cpu" else 1
        return self._settings.lanes or max(1, default)

    def _scheduler(self, device: str) -> Scheduler:
        settings = self._settings
        default = min(_CPU_IMAGE_BATCH_SIZE, settings.max_batch_size) if device == "cpu" else None
        return Scheduler(
            {
                "image": BatchPolicy(settings.max_image_batch_size or default or settings.max_batch_size),
                "text": BatchPolicy(settings.max_batch_size, _TEXT_BATCH_OVERHEAD_TOKENS),
            },
            settings.max_queue_delay_ms / 1000,
        )

    async def _watch(self, batcher: Batcher) -> None:
        """Ties health to progress: a batch that runs too long turns it to NOT_SERVING until it ends."""
        while True:
            await asyncio.sleep(self._settings.watchdog_interval_seconds)
            running_seconds = batcher.longest_running_seconds()
            is_stalled = running_seconds > self._settings.stall_timeout_seconds
            if is_stalled and self._readiness.state is State.READY:
                _log.error("stalled", running_seconds=round(running_seconds, 1))
                await self._readiness.enter(State.STALLED)
            elif not is_stalled and self._readiness.state is State.STALLED:
                _log.info("recovered")
                await self._readiness.enter(State.READY)


async def serve(settings: Settings, load_encoder: LoadEncoder) -> None:
    """Serves until SIGTERM or SIGINT, then drains and stops. A second signal cuts the drain short.

    Raises:
        StartupError: A port cannot be opened.
        Exception: Whatever loading the model raises.
    """
    server = Server(settings, load_encoder)
    with _signals() as signals:
        stopping = asyncio.create_task(signals.get())
        try:
            await server.start()
            loading = asyncio.create_task(server.load())
            await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
            received = await stopping
            # Ctrl-C is a person at a terminal: no balancer has to notice, so there is nothing to wait for.
            delay = settings.drain_delay_seconds if received == signal.SIGTERM else 0.0
            second = asyncio.create_task(signals.get())
            draining = asyncio.create_task(server.drain(delay))
            await asyncio.wait({draining, second}, return_when=asyncio.FIRST_COMPLETED)
            draining.cancel()
            grace = 0.0 if second.done() else settings.shutdown_grace_seconds
            second.cancel()
        except BaseException:
            grace = 0.0
            raise
        finally:
            stopping.cancel()
            await server.stop(grace)


@contextmanager
def _signals() -> Iterator[asyncio.Queue[int]]:
    """Yields a queue of the SIGTERM and SIGINT that the process receives meanwhile."""
    loop = asyncio.get_running_loop()
    received: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, received.put_nowait, number)
    try:
        yield received
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _limits(settings: Settings) -> RequestLimits:
    return RequestLimits(
        max_client_batch_size=settings.max_client_batch_size,
        max_labels=settings.max_labels,
        max_prompt_templates=settings.max_prompt_templates,
        max_image_bytes=settings.max_image_bytes,
        max_image_pixels=settings.max_image_pixels,
        max_text_bytes=settings.max_text_bytes,
        max_request_bytes=settings.max_request_bytes,
        max_stream_in_flight=settings.max_stream_in_flight,
    )


def _channel_options(settings: Settings) -> list[tuple[str, int]]:
    options = {
        "grpc.so_reuseport": 0,  # on by default: a second server would start silently and steal calls
        "grpc.max_receive_message_length": settings.max_request_bytes,
        "grpc.max_send_message_length": -1,  # answers are bounded by the requests, which are
        # A fuse against rapid resets, never admission: clients do not queue at it, they fail.
        "grpc.max_concurrent_streams": max(1000, 2 * settings.max_queue_size),
        "grpc.keepalive_time_ms": round(settings.keepalive_time_seconds * 1000),
        "grpc.keepalive_timeout_ms": round(settings.keepalive_timeout_seconds * 1000),
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.min_recv_ping_interval_without_data_ms": 10_000,
    }
    if settings.max_connection_age_seconds is not None:
        options["grpc.max_connection_age_ms"] = round(settings.max_connection_age_seconds * 1000)
        options["grpc.max_connection_age_grace_ms"] = round(settings.max_connection_age_grace_seconds * 1000)
    return list(options.items())


def _warmup_image() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "gray").save(buffer, "PNG")
    return buffer.getvalue()


def load_encoder(settings: Settings) -> Encoder:
    """Loads the model that the settings name; `fake` is one without weights, to test and measure the server.

    Raises:
        CheckpointError: It is missing, incomplete or not an ALIGN checkpoint.
        StartupError: The device does not exist.
    """
    if settings.checkpoint == "fake":
        return FakeEncoder(embedding_dimension=640, is_recording=False)
    from alignserve_server.model.align import load_align  # brings torch, which takes seconds

    try:
        return load_align(
            resolve_checkpoint(settings.checkpoint, settings.revision),
            device=settings.device,
            dtype=settings.dtype,
            threads_per_lane=settings.threads_per_lane,
            max_image_bytes=settings.max_image_bytes,
            max_image_pixels=settings.max_image_pixels,
            max_text_bytes=settings.max_text_bytes,
        )
    except ValueError as error:
        raise StartupError(str(error)) from error
