"""One server process: start → load → serve → drain → stop. Wires everything, once."""

from __future__ import annotations

import asyncio
import gc
import io
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import partial
from importlib.metadata import version
from types import MappingProxyType
from typing import TypeVar
from wsgiref.simple_server import WSGIServer

import grpc
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from PIL import Image
from prometheus_client import CollectorRegistry

from alignserve_server.access.authorization import Access
from alignserve_server.access.keys import KeyRing
from alignserve_server.api.accounting import Accounting
from alignserve_server.api.limits import RequestLimits
from alignserve_server.api.readiness import Readiness, State, model_stalled
from alignserve_server.api.service import Service
from alignserve_server.batching.admission import QueueLimits
from alignserve_server.batching.batch_size import best_batch_size
from alignserve_server.batching.batcher import Batcher
from alignserve_server.batching.engine import Engine
from alignserve_server.batching.local_backend import CacheBytes, LocalBackend
from alignserve_server.batching.preprocess_pool import PreprocessPool
from alignserve_server.batching.preprocessor import Preprocessor
from alignserve_server.batching.scheduler import BatchPolicy, Scheduler
from alignserve_server.errors import StartupError
from alignserve_server.host.cores import cpu_count
from alignserve_server.host.waiting import first_of
from alignserve_server.model.checkpoint import Checkpoint
from alignserve_server.model.encoder import Encoder, PixelValues, TokenizedText
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.model.prepared import resolve
from alignserve_server.model.preprocessing.decode import IMAGE_FORMATS, accepted_formats
from alignserve_server.observability.batch_observer import MetricsObserver
from alignserve_server.observability.gpu import watch_gpu
from alignserve_server.observability.logs import dropped_lines, get_logger
from alignserve_server.observability.metrics import Metrics, state_series
from alignserve_server.observability.metrics_http import serve_metrics_page
from alignserve_server.observability.span_export import SpanExport
from alignserve_server.observability.tracing import Tracing
from alignserve_server.rpc.aio_server import aio_server
from alignserve_server.rpc.connections import Connections
from alignserve_server.rpc.expected import API, HEALTH, expect_calls
from alignserve_server.rpc.health import HealthServicer, add_health_to
from alignserve_server.rpc.interceptors import ConnectionLimits, ServingInterceptor
from alignserve_server.rpc.message_api import MessageApi
from alignserve_server.rpc.methods import HEALTH_SERVICE, SERVICE
from alignserve_server.rpc.reflection import add_reflection_to
from alignserve_server.rpc.servicer import AlignServicer
from alignserve_server.rpc.tls import CertificateFiles, Certificates
from alignserve_server.serving.tuned_sizes import TunedSizes, cpu_model
from alignserve_server.serving.watchdog import Watchdog
from alignserve_server.settings import Settings, is_loopback

_log = get_logger(__name__)

_T = TypeVar("_T")

LoadEncoder = Callable[[Settings], Encoder]
Announce = Callable[..., object]  # takes an event and what belongs to it, as the log does
TellState = Callable[[str], object]  # takes one of `metrics.STATES`

_TEXT_BATCH_OVERHEAD_TOKENS = 16  # a text forward's fixed cost is about that of so many tokens
_LANES_STOP_SECONDS = 5.0
_FLUSH_SECONDS = 1.0
_FORCED_LANES_STOP_SECONDS = 0.25
_QUIET_ROUNDS, _ROUND_SECONDS = 2, 0.01  # without a call, before connections are ended
_MAX_ROUNDS = 30  # after the last accepted call; rounds, since a busy machine takes longer for them
_FOREVER_SECONDS = 1e9
_BEYOND_HELP = 3  # exit code
_MAX_PENDING_CALLS = 100_000
_ADVICE = (
    "anybody who reaches this port can call, and what is sent is not encrypted; use --tls-certificate with "
    "--tls-key, and --api-keys-file or --tls-client-ca, or keep the port to a network that you trust"
)


class Server:
    """A server in this process, on the running event loop."""

    def __init__(
        self,
        settings: Settings,
        load_encoder: LoadEncoder,
        announce: Announce | None = None,
        tell_state: TellState = lambda _: None,
    ) -> None:
        self._settings = settings
        self._load_encoder = load_encoder
        self._announce = announce or _log.info
        self._readiness = Readiness(tell_state)
        self.metrics = Metrics(CollectorRegistry())
        self.metrics.log_lines_dropped.set_function(dropped_lines)
        self.metrics.state.set_function(lambda: state_series(self.state))
        for api_service in (API, HEALTH):
            expect_calls(self.metrics, api_service)
        self._version = version("alignserve-server")
        keys = settings.api_keys_file
        access = Access(None if keys is None else KeyRing(keys, self.metrics.callers.know_keys))
        self.service = Service(self._readiness, _limits(settings), self._version)
        self.messages = MessageApi(
            self.service,
            self.metrics,
            max_stream_age_seconds=settings.max_stream_age_seconds or _FOREVER_SECONDS,
            max_unread_response_bytes=settings.max_unread_response_bytes,
        )
        self._spans = SpanExport(self._version) if settings.tracing else None
        tracer = None if self._spans is None else self._spans.tracer
        tracing = Tracing(tracer, settings.access_log_sample_ratio)
        self._observer = MetricsObserver(self.metrics, tracing)
        self.accounting = Accounting(self.metrics, access, tracing)
        self.interceptor = ServingInterceptor(self.accounting, _connection_limits(settings))
        self._grpc = aio_server([self.interceptor], _channel_options(settings))
        self._batcher: Batcher | None = None
        self._tuned_sizes: TunedSizes | None = None
        self._metrics_server: WSGIServer | None = None
        self._decode_threads = settings.decode_threads or cpu_count()
        self._pool = PreprocessPool(self._decode_threads)
        self._watchdog: asyncio.Task[None] | None = None
        self._serving: asyncio.Task[None] | None = None
        self._is_beyond_help = asyncio.Event()
        self._cut_off = asyncio.Event()
        self._is_stopped = False
        self.port = 0
        self.metrics_port = 0

    async def start(self) -> None:
        """Opens the ports. Until `load` is done, health says NOT_SERVING and calls get MODEL_LOADING.

        Raises:
            StartupError: A port is taken or an address is not this machine's.
        """
        self.add_services_to(self._grpc)
        if self._settings.reflection:
            for service in add_reflection_to(self._grpc, (SERVICE, HEALTH_SERVICE)):
                expect_calls(self.metrics, service)
        try:
            self.port = self._open_port()
        except RuntimeError as error:
            raise StartupError(
                f"cannot listen on {self._settings.listen}: the port is taken or the address is not this "
                "machine's; choose another with --listen"
            ) from error
        if self._settings.metrics:
            self._metrics_server = serve_metrics_page(
                self._settings.metrics_listen, self.metrics.registry, lambda: self.state
            )
            self.metrics_port = self._metrics_server.server_port
        await self._grpc.start()
        self._serving = asyncio.create_task(self._note_end_of_grpc())
        if not is_loopback(self._settings.listen) and not self._settings.is_protected:
            _log.warning("listening_unprotected", listen=self._settings.listen, advice=_ADVICE)
        self._announce(
            "listening", listen=self._settings.listen, port=self.port, metrics_port=self.metrics_port
        )

    def add_services_to(self, server: grpc.aio.Server) -> None:
        """Adds the API and its health to a server, which has to use `interceptor`."""
        pb_grpc.add_AlignServiceServicer_to_server(AlignServicer(self.messages), server)
        add_health_to(server, HealthServicer(self._readiness))

    async def load(self) -> None:
        """Loads the model, runs it once per modality and reports ready.

        Raises:
            Exception: Whatever loading raises; the server stays NOT_SERVING.
        """
        start = time.perf_counter()
        encoder, batch_sizes = await _in_daemon_thread(self._load)
        info = encoder.info
        lanes = self._settings.lanes or encoder.lanes
        self._batcher = Batcher(
            encoder,
            self._scheduler(batch_sizes),
            self._observer,
            lanes=lanes,
            on_widened=partial(self._note_widened, batch_sizes),
        )
        self._batcher.start()
        self.service.engine = self._engine(encoder, self._batcher)
        self._publish_model(encoder)
        _forget_the_past()
        self._readiness.enter(State.READY)
        self._watchdog = asyncio.create_task(self._watch(encoder, self._batcher).run())
        self._watchdog.add_done_callback(self._note_end_of_watch)
        self._announce(
            "ready",
            model_id=info.model_id,
            fingerprint=info.fingerprint,
            runtime=info.runtime,
            dtype=info.dtype,
            device=info.device,
            min_cosine=round(info.min_cosine, 6),
            lanes=lanes,
            max_batch_size=batch_sizes,
            load_seconds=round(time.perf_counter() - start, 3),
        )

    @property
    def state(self) -> str:
        """One of `metrics.STATES`."""
        return self._readiness.state.word

    @property
    def is_loaded(self) -> bool:
        """Says whether `load` has ever reported ready."""
        return self.service.engine is not None

    def check_health(self) -> None:
        """Passes while calls can be served.

        Raises:
            ServingError: They cannot, for now or for good.
        """
        if self._is_beyond_help.is_set():
            raise model_stalled()
        self._readiness.check()

    async def wait_until_beyond_help(self) -> None:
        """Returns when the device has stalled for good, which only a new process can cure."""
        await self._is_beyond_help.wait()

    async def drain(self, delay_seconds: float) -> None:
        """Reports NOT_SERVING, serves on for a while so that balancers look elsewhere, then refuses calls."""
        _log.info("draining", delay_seconds=delay_seconds)
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._readiness.enter(State.DRAINING)
        await asyncio.sleep(delay_seconds)
        self._refuse_calls()

    async def stop(self, grace_seconds: float) -> None:
        """Refuses new calls, lets accepted ones finish within the grace, and closes everything, once."""
        if self._is_stopped:  # gRPC crashes if it is stopped again
            return
        self._is_stopped = True
        _log.info("stopping", grace_seconds=grace_seconds)
        self._refuse_calls()
        await self._finish_calls(grace_seconds)
        await self._close_grpc()
        is_hopeless = self._cut_off.is_set() or self._is_beyond_help.is_set()
        patience = _FORCED_LANES_STOP_SECONDS if is_hopeless else _LANES_STOP_SECONDS
        if self._batcher is not None and not await self._batcher.stop(patience):
            _log.warning("lane_still_running")
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self.service.engine is not None:
            self.service.engine.close()
        if self._metrics_server is not None:
            await asyncio.to_thread(self._metrics_server.shutdown)
            self._metrics_server.server_close()
        if self._spans is not None:
            with suppress(TimeoutError):  # a collector may be away
                await asyncio.wait_for(_in_daemon_thread(self._spans.flush), _FLUSH_SECONDS)
        _log.info("stopped")

    def cut_off(self) -> None:
        """Ends the grace of a `stop` that is under way: cancels calls, and hardly waits for a batch."""
        self._cut_off.set()

    async def _note_end_of_grpc(self) -> None:
        """Notes if gRPC ends by itself: then nobody is served, while all the rest looks alive."""
        try:
            await self._grpc.wait_for_termination()
        except Exception:  # noqa: BLE001 — whatever ended it
            _log.exception("grpc_died")
        if not self._is_stopped:
            self._is_beyond_help.set()

    def _note_end_of_watch(self, watch: asyncio.Task[None]) -> None:
        if watch.cancelled():
            return
        if (error := watch.exception()) is not None:
            _log.error("watchdog_died", exc_info=error)
        self._is_beyond_help.set()

    def _refuse_calls(self) -> None:
        self._readiness.enter(State.STOPPING)
        self.messages.drain_streams()
        self.interceptor.refuse_uploads()
        self.interceptor.close_watches()

    async def _finish_calls(self, grace_seconds: float) -> None:
        """Waits until accepted calls have their answers and no more come, for the grace at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await first_of(self._calls_end(), self._cut_off.wait())

    async def _calls_end(self) -> None:
        """Returns when no call is under way, and none has come for a while.

        Callers who go on although they are refused would keep it from ever returning, so it does not wait for
        long: they get UNAVAILABLE either way, if only without a reason.
        """
        await self.accounting.under_way.wait_for_end()
        connections, loop = Connections(self.port), asyncio.get_running_loop()
        connections.accept_no_more()
        quiet_rounds = 0
        for _ in range(_MAX_ROUNDS):
            if quiet_rounds == _QUIET_ROUNDS:
                break
            started, began = self.accounting.under_way.started, loop.time()
            await asyncio.sleep(_ROUND_SECONDS)
            # A machine that is late with this is late with the calls, too.
            is_late = loop.time() - began > 2 * _ROUND_SECONDS
            has_come = self.accounting.under_way.started != started
            is_quiet = not (has_come or is_late) and connections.are_read() and connections.are_written()
            quiet_rounds = quiet_rounds + 1 if is_quiet else 0
        await self.accounting.under_way.wait_for_end()

    async def _close_grpc(self) -> None:
        Connections(self.port).end()  # before gRPC cancels what is left of their calls
        await self._grpc.stop(None)

    def _open_port(self) -> int:
        settings = self._settings
        if settings.tls_certificate is None or settings.tls_key is None:
            return self._grpc.add_insecure_port(settings.listen)
        files = CertificateFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
        certificates = Certificates(files, self.metrics.certificate_expiry.labels("server").set)
        return self._grpc.add_secure_port(settings.listen, certificates.credentials)

    def _load(self) -> tuple[Encoder, dict[str, int]]:
        """Returns the model, warmed up, and its batch sizes; in one thread, which is prepared as a lane's."""
        encoder = self._load_encoder(self._settings)
        if self._settings.warmup:
            _run_once(encoder)
        batch_sizes = self._batch_sizes(encoder)
        encoder.release_memory()
        return encoder, batch_sizes

    def _batch_sizes(self, encoder: Encoder) -> dict[str, int]:
        if not encoder.is_measurable or not tuned_limits(self._settings):
            return batch_limits(self._settings)
        self._tuned_sizes = _tuned_sizes(self._settings, encoder, self._version)
        known = self._tuned_sizes.read(tuned_limits(self._settings))
        pixels, text = _plain_inputs(encoder)
        sizes = batch_sizes(
            self._settings,
            lambda size: encoder.encode_images([pixels] * size),
            lambda size: encoder.encode_texts([text] * size),
            # On a CPU, the time for which others had it does not count.
            time.process_time if encoder.info.device == "cpu" else time.perf_counter,
            known,
        )
        if known.keys() != tuned_limits(self._settings).keys():
            self._keep(sizes)
        return sizes

    def _keep(self, sizes: Mapping[str, int]) -> None:
        """Keeps the sizes that were measured; those that are given hold for this start only."""
        if self._tuned_sizes is not None:
            self._tuned_sizes.write({name: sizes[name] for name in tuned_limits(self._settings)})

    def _note_widened(self, sizes: dict[str, int], modality: str, size: int) -> None:
        """Takes note of a larger batch that has proved faster while serving."""
        sizes[modality] = size
        self.metrics.max_batch_size.labels(modality).set(size)
        _log.info("max_batch_size_raised", modality=modality, max_batch_size=size)
        threading.Thread(target=self._keep, args=(dict(sizes),), daemon=True).start()

    def _engine(self, encoder: Encoder, batcher: Batcher) -> Engine:
        limits = QueueLimits(self._settings.max_queue_size, self._settings.max_queue_bytes)
        caches = CacheBytes(self._settings.image_cache_bytes, self._settings.text_cache_bytes)
        return Engine(
            Preprocessor(encoder, self._pool, self._observer, decode_threads=self._decode_threads),
            LocalBackend(encoder.info, batcher, self._observer, limits, caches),
            self._observer,
            limits,
            label_cache_size=self._settings.label_cache_size,
        )

    def _watch(self, encoder: Encoder, batcher: Batcher) -> Watchdog:
        return Watchdog(
            self._readiness,
            batcher,
            self._pool,
            self.metrics,
            probe=lambda: _in_daemon_thread(partial(_run_once, encoder)),
            stall_timeout_seconds=self._settings.stall_timeout_seconds,
            stall_exit_seconds=self._settings.stall_exit_seconds,
            interval_seconds=self._settings.watchdog_interval_seconds,
        )

    def _publish_model(self, encoder: Encoder) -> None:
        info = encoder.info
        self.metrics.model_info.labels(
            info.model_id, info.fingerprint, info.runtime, info.dtype, info.device, self._version
        ).set(1)
        self.metrics.model_min_cosine.set(info.min_cosine)
        self.metrics.device_memory_bytes.set_function(lambda: encoder.device_memory_bytes)
        if encoder.gpu_uuid is not None:
            watch_gpu(encoder.gpu_uuid, self.metrics)

    def _scheduler(self, batch_sizes: dict[str, int]) -> Scheduler:
        for modality, size in batch_sizes.items():
            self.metrics.max_batch_size.labels(modality).set(size)
        policies = batch_policies(batch_sizes, tuned_limits(self._settings))
        return Scheduler(policies, self._settings.max_queue_delay_seconds / 1000)


def batch_limits(settings: Settings) -> dict[str, int]:
    """Returns the most entries in a batch of each modality, as set."""
    return {
        "image": settings.max_image_batch_size or settings.max_batch_size,
        "text": settings.max_text_batch_size or settings.max_batch_size,
    }


def tuned_limits(settings: Settings) -> dict[str, int]:
    """Returns the most entries in a batch of each modality whose size is not used as given."""
    pins = {"image": settings.max_image_batch_size, "text": settings.max_text_batch_size}
    return {name: settings.max_batch_size for name, pin in pins.items() if settings.warmup and pin is None}


def batch_sizes(
    settings: Settings,
    run_images: Callable[[int], object],
    run_texts: Callable[[int], object],
    clock: Callable[[], float] = time.perf_counter,
    known: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, int]:
    """Returns the largest batch of each modality: as set, or less where less proves as fast.

    Args:
        settings: Which sizes are used as given.
        run_images: Runs a batch of a size.
        run_texts: The same for texts.
        clock: Seconds.
        known: Sizes that were measured before.
    """
    runs = {"image": run_images, "text": run_texts}
    measured = {
        modality: known.get(modality) or best_batch_size(runs[modality], limit, clock)
        for modality, limit in tuned_limits(settings).items()
    }
    return {**batch_limits(settings), **measured}


def batch_policies(
    sizes: Mapping[str, int], limits: Mapping[str, int] = MappingProxyType({})
) -> dict[str, BatchPolicy]:
    """Returns how each modality is batched; batches may grow from `sizes` to `limits` while serving."""
    return {
        "image": BatchPolicy(sizes["image"], limit=limits.get("image", 0)),
        "text": BatchPolicy(sizes["text"], _TEXT_BATCH_OVERHEAD_TOKENS, limits.get("text", 0)),
    }


async def serve(
    settings: Settings,
    load_encoder: LoadEncoder,
    announce: Announce | None = None,
    tell_state: TellState = lambda _: None,
    *,
    listens_first: bool = True,
) -> int:
    """Serves until SIGTERM or SIGINT, then drains and stops. A second signal ends whatever that waits for.

    A device that has stalled for good ends it too.

    Args:
        settings: All of them.
        load_encoder: Loads the model.
        announce: Takes the events `listening` and `ready`, which otherwise go to the log.
        tell_state: Takes the state whenever it has changed.
        listens_first: Whether the ports open before the model is loaded, so that probes get an answer, or
            after, where others on the same port can serve meanwhile.

    Returns:
        The exit code: 0 after a signal, 3 if the device has stalled for good.

    Raises:
        StartupError: A port cannot be opened.
        Exception: Whatever loading the model raises.
    """
    server = Server(settings, load_encoder, announce, tell_state)
    with _signals() as signals:
        grace = 0.0
        try:
            if listens_first:
                await server.start()
            received = await _signal_during(server.load(), signals)
            if not listens_first and received is None:
                await server.start()
            received = received or await _signal_during(server.wait_until_beyond_help(), signals)
            if received is None:
                _log.error("unrecoverable_stall", advice="the process ends with code 3; start a new one")
                grace = min(settings.shutdown_grace_seconds, _LANES_STOP_SECONDS)
                return _BEYOND_HELP
            # Ctrl-C is a person at a terminal, and a server that was never ready is in no balancer's list:
            # nobody has to notice, so there is nothing to wait for.
            is_in_use = received == signal.SIGTERM and server.is_loaded
            delay = settings.drain_delay_seconds if is_in_use else 0.0
            if await _signal_during(server.drain(delay), signals) is None:
                grace = settings.shutdown_grace_seconds
            return 0
        finally:
            stopping = asyncio.ensure_future(server.stop(grace))
            if await _signal_during(asyncio.shield(stopping), signals) is not None:
                server.cut_off()
            await stopping


async def _signal_during(work: Awaitable[None], signals: asyncio.Queue[int]) -> int | None:
    """Waits for the work; cancels it and returns the signal if one comes first."""
    return await first_of(work, signals.get())


async def _in_daemon_thread(work: Callable[[], _T]) -> _T:
    """Runs the work in a thread that a process does not wait for when it ends, unlike a pool's."""
    outcome: Future[_T] = Future()
    outcome.set_running_or_notify_cancel()  # from here on it takes the outcome even if nobody waits any more

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 — raised where the outcome is awaited
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(outcome)


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


def _forget_the_past() -> None:
    """Keeps the garbage collector from going through all that was loaded, which stays, again and again.

    It would hold up the event loop for tens of milliseconds each time.
    """
    gc.collect()
    gc.freeze()


def _limits(settings: Settings) -> RequestLimits:
    set_by_name = {field.name for field in fields(RequestLimits)} - {"image_formats"}
    return RequestLimits(
        **settings.model_dump(include=set_by_name),
        image_formats=(*IMAGE_FORMATS, *settings.further_image_formats),
    )


def _connection_limits(settings: Settings) -> ConnectionLimits:
    return ConnectionLimits(
        request_timeout_seconds=settings.request_timeout_seconds,
        max_uploads=settings.max_uploads,
        max_streams=settings.max_streams,
        max_request_fields=_max_request_fields(settings),
    )


def _max_request_fields(settings: Settings) -> int:
    """Returns several times those of the largest legal request: others are told what is wrong if they can."""
    largest = 2 * settings.max_client_batch_size + settings.max_labels + settings.max_prompt_templates
    return max(1 << 13, 4 * largest)


def _channel_options(settings: Settings) -> list[tuple[str, int]]:
    options = {
        # On by default, and a second server would start silently and steal calls. Workers' port is reserved.
        "grpc.so_reuseport": int(settings.workers > 1),
        "grpc.max_receive_message_length": settings.max_request_bytes,
        "grpc.max_send_message_length": -1,  # `ResponseLimit` comes before the work, this would come after
        # By default gRPC drops calls with a bare CANCELLED, first some and then all, once 1000 to 3000 wait
        # for the event loop to take them; admission, which says QUEUE_FULL, comes after that.
        "grpc.server.max_pending_requests": _MAX_PENDING_CALLS,
        "grpc.server.max_pending_requests_hard_limit": _MAX_PENDING_CALLS,
        # Probing raises the window of every stream to megabytes, which a client may then fill without anybody
        # reading. A message that is being read gets the window that it needs, however large.
        "grpc.http2.bdp_probe": 0,
        # A fuse against rapid resets, never admission: clients do not queue at it, they fail.
        "grpc.max_concurrent_streams": max(1000, 2 * settings.max_queue_size),
        "grpc.keepalive_time_ms": round(settings.keepalive_time_seconds * 1000),
        "grpc.keepalive_timeout_ms": round(settings.keepalive_timeout_seconds * 1000),
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.min_ping_interval_without_data_ms": 10_000,
    }
    if settings.max_connection_age_seconds:
        options["grpc.max_connection_age_ms"] = round(settings.max_connection_age_seconds * 1000)
        options["grpc.max_connection_age_grace_ms"] = round(settings.max_connection_age_grace_seconds * 1000)
    return list(options.items())


def _run_once(encoder: Encoder) -> None:
    """Runs the model once per modality, past the batcher: /metrics counts callers' traffic alone."""
    encoder.enter_lane()
    pixels, text = _plain_inputs(encoder)
    encoder.encode_images([pixels])
    encoder.encode_texts([text])


def _tuned_sizes(settings: Settings, encoder: Encoder, version: str) -> TunedSizes:
    from alignserve_server.model.align import default_cache_dir  # so that the fake starts without it

    facts: dict[str, str | int | None] = {
        "server": version,
        "processor": cpu_model(),
        "cores": cpu_count(),
        "gpu": encoder.gpu_uuid,
        "runtime": encoder.info.runtime,
        "dtype": encoder.info.dtype,
        "device": encoder.info.device,
        "lanes": settings.lanes or encoder.lanes,
        "threads_per_lane": settings.threads_per_lane,
        "max_batch_size": settings.max_batch_size,
    }
    folder = (settings.cache_dir or default_cache_dir()) / "tuning"
    return TunedSizes(folder, encoder.info.fingerprint, facts)


def _plain_inputs(encoder: Encoder) -> tuple[PixelValues, TokenizedText]:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "gray").save(buffer, "PNG")
    pixels = encoder.preprocess_image(buffer.getvalue())
    return pixels, encoder.tokenize("a photo of a cat on a sofa in a room with a window", truncate=True)


def load_encoder(settings: Settings, worker: int = 0) -> Encoder:
    """Loads the model that the settings name; `fake` is one without weights, to test and measure the server.

    Of several workers each takes a GPU of its own.

    Raises:
        CheckpointError: It is missing, incomplete or not an ALIGN checkpoint.
        StartupError: The device does not exist, or there are more workers than GPUs.
    """
    if settings.checkpoint == "fake":
        return FakeEncoder(embedding_dimension=640, is_recording=False)
    from alignserve_server.model.align import load_align  # so that the fake starts without any runtime

    checkpoint = resolve(settings.checkpoint, settings.revision)
    try:
        # What is prepared is served on the CPU, whatever else there is.
        device = _device(settings, worker) if isinstance(checkpoint, Checkpoint) else settings.device
        return load_align(
            checkpoint,
            runtime=settings.runtime,
            device=device,
            dtype=settings.dtype,
            lanes=settings.lanes,
            threads_per_lane=settings.threads_per_lane,
            max_batch_size=max(batch_limits(settings).values()),
            cuda_graphs=settings.cuda_graphs,
            min_cosine=settings.min_cosine_similarity,
            cache_dir=settings.cache_dir,
            calibration_dir=settings.calibration_dir,
            max_image_bytes=settings.max_image_bytes,
            max_image_pixels=settings.max_image_pixels,
            max_text_bytes=settings.max_text_bytes,
            image_formats=accepted_formats(settings.further_image_formats),
        )
    except ValueError as error:
        raise StartupError(str(error)) from error


def _device(settings: Settings, worker: int) -> str:
    from alignserve_server.model.align import resolved_device

    if settings.workers == 1 or resolved_device(settings.device, settings.runtime) == "cpu":
        return settings.device
    try:
        resolved_device(f"cuda:{settings.workers - 1}", settings.runtime)
    except ValueError as error:
        raise StartupError(
            f"{settings.workers} workers need a GPU each, but {error}; lower --workers or use --device cpu"
        ) from error
    return f"cuda:{worker}"
