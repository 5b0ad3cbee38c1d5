"""A process that takes calls: start → load → serve → drain → stop. Wires everything, once."""

from __future__ import annotations

import asyncio
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry

from alignserve_server.access.authorization import Access
from alignserve_server.access.keys import KeyRing
from alignserve_server.access.usage import Usages
from alignserve_server.api.accounting import Accounting
from alignserve_server.api.limits import RequestLimits
from alignserve_server.api.readiness import Readiness, State, model_stalled
from alignserve_server.api.service import Service
from alignserve_server.batching.engine import Engine
from alignserve_server.host.daemon_thread import in_daemon_thread
from alignserve_server.host.garbage import settle_garbage_collector
from alignserve_server.host.open_files import max_open_files
from alignserve_server.host.waiting import first_of
from alignserve_server.kserve.messages import POOL as OPEN_INFERENCE_POOL
from alignserve_server.kserve.messages import SERVICE as OPEN_INFERENCE
from alignserve_server.kserve.methods import METHODS as OPEN_INFERENCE_METHODS
from alignserve_server.kserve.servicer import InferenceServicer, add_inference_to
from alignserve_server.model.preprocessing.decode import IMAGE_FORMATS
from alignserve_server.observability.batch_observer import MetricsObserver
from alignserve_server.observability.logs import dropped_lines, get_logger
from alignserve_server.observability.metrics import Metrics, Part, state_series
from alignserve_server.observability.metrics_http import serve_metrics_page
from alignserve_server.observability.span_export import SpanExport
from alignserve_server.observability.tracing import Tracing
from alignserve_server.rpc.aio_server import aio_server
from alignserve_server.rpc.connections import Connections
from alignserve_server.rpc.health import HealthServicer, add_health_to
from alignserve_server.rpc.interceptors import ConnectionLimits, ServingInterceptor
from alignserve_server.rpc.message_api import MessageApi
from alignserve_server.rpc.method_metrics import expect_calls
from alignserve_server.rpc.methods import API, HEALTH, HEALTH_SERVICE, METHODS, SERVICE
from alignserve_server.rpc.port import PortOptions, open_port
from alignserve_server.rpc.reflection import add_reflection_to
from alignserve_server.rpc.servicer import add_api_to
from alignserve_server.rpc.tls import CertificateFiles, Certificates
from alignserve_server.serving.exit_codes import EXIT_UNRECOVERABLE
from alignserve_server.serving.loaded_model import LoadedModel
from alignserve_server.serving.loading import LoadEncoder, load_warm
from alignserve_server.serving.process import (
    FORCED_LANES_STOP_SECONDS,
    LANES_STOP_SECONDS,
    RESTART_ADVICE,
    Announce,
    TellState,
)
from alignserve_server.serving.signals import received_signals, signal_during
from alignserve_server.settings import Settings, is_loopback

if TYPE_CHECKING:  # its packages are an extra
    from alignserve_server.http.door import HttpDoor

_log = get_logger(__name__)

_FLUSH_SECONDS = 1.0
_QUIET_ROUNDS, _ROUND_SECONDS = 2, 0.01  # without a call, before connections are closed
_MAX_ROUNDS = 30  # after the last accepted call; in rounds, since they take longer on a busy machine
_ADVICE = (
    "any client that reaches this port can call, and traffic is not encrypted; use --tls-certificate with "
    "--tls-key, and --api-keys-file or --tls-client-ca, or restrict the port to a trusted network"
)


class ServedModel(Protocol):
    """What a server serves. The model may run in another process."""

    @property
    def engine(self) -> Engine:
        """Embeds and classifies for all callers."""
        ...

    def facts(self) -> Mapping[str, object]:
        """Returns the fields of the event `ready`."""
        ...

    async def watch(self) -> None:
        """Watches whether it makes progress; returns when only another process can."""
        ...

    async def stop(self, timeout_seconds: float) -> None:
        """Stops everything, waiting at most the timeout for running batches."""
        ...


class CallServer(ABC):
    """Serves calls in this process, on the running event loop, with the model that a subclass opens."""

    part: Part

    def __init__(
        self,
        settings: Settings,
        announce: Announce | None = None,
        tell_state: TellState = lambda _: None,
        usages: Usages | None = None,
    ) -> None:
        self._settings = settings
        self._announce = announce or _log.info
        self._readiness = Readiness(tell_state)
        self.metrics = Metrics(CollectorRegistry(), self.part)
        self.metrics.log_lines_dropped.set_function(dropped_lines)
        self.metrics.state.set_function(lambda: state_series(self.state))
        for api_service in (API, HEALTH):
            expect_calls(self.metrics, api_service)
        if settings.open_inference:
            expect_calls(self.metrics, OPEN_INFERENCE, OPEN_INFERENCE_METHODS)
        self._version = version("alignserve-server")
        keys = settings.api_keys_file
        ring = None if keys is None else KeyRing(keys, self.metrics.callers.set_keys)
        access = Access(ring, usages=usages)
        self.service = Service(self._readiness, _limits(settings), self._version)
        self.messages = MessageApi(
            self.service,
            self.metrics,
            max_stream_age_seconds=settings.max_stream_age_seconds or None,
            max_unread_response_bytes=settings.max_unread_response_bytes,
        )
        self._spans = SpanExport(self._version) if settings.tracing else None
        tracer = None if self._spans is None else self._spans.tracer
        self._tracing = Tracing(tracer, settings.access_log_sample_ratio)
        self._observer = MetricsObserver(self.metrics, self._tracing)
        self.accounting = Accounting(self.metrics, access, self._tracing)
        methods = {**METHODS, **OPEN_INFERENCE_METHODS} if settings.open_inference else METHODS
        self.interceptor = ServingInterceptor(self.accounting, _connection_limits(settings), methods)
        self._http = self._http_door()
        self._grpc = aio_server(self.interceptor, _port_options(settings).channel_options())
        self._model: ServedModel | None = None
        self._metrics_server: WSGIServer | None = None
        self._watching: asyncio.Task[None] | None = None
        self._serving: asyncio.Task[None] | None = None
        self._unrecoverable = asyncio.Event()
        self._cut_off = asyncio.Event()
        self._is_stopped = False
        self.port = 0
        self.metrics_port = 0
        self.http_port = 0

    async def start(self) -> None:
        """Opens the ports. Until `load` is done, health is NOT_SERVING and calls get MODEL_LOADING.

        Raises:
            StartupError: A port is in use, or an address is not one of this machine.
        """
        add_api_to(self._grpc, self.messages)
        add_health_to(self._grpc, HealthServicer(self._readiness))
        reflected, pools = [SERVICE, HEALTH_SERVICE], []
        if self._settings.open_inference:
            servicer = InferenceServicer(self.service, self.messages, self.metrics, self._version)
            add_inference_to(self._grpc, servicer)
            reflected.append(OPEN_INFERENCE.full_name)
            pools.append(OPEN_INFERENCE_POOL)
        if self._settings.reflection:
            for service in add_reflection_to(self._grpc, reflected, pools):
                expect_calls(self.metrics, service)
        certificates = self._certificates()
        self.port = open_port(self._grpc, self._settings.listen, certificates)
        if self._settings.metrics_listen is not None:
            self._metrics_server = serve_metrics_page(
                self._settings.metrics_listen, self.metrics.registry, lambda: self.state
            )
            self.metrics_port = self._metrics_server.server_port
        if self._http is not None:
            await self._http.start(None if certificates is None else certificates.ssl_context())
            self.http_port = self._http.port
        await self._grpc.start()
        self._serving = asyncio.create_task(self._watch_grpc())
        for listen in filter(None, (self._settings.listen, self._settings.http_listen)):
            if not is_loopback(listen) and not self._settings.is_protected:
                _log.warning("listening_unprotected", listen=listen, advice=_ADVICE)
        self._announce(
            "listening",
            listen=self._settings.listen,
            port=self.port,
            metrics_port=self.metrics_port,
            http_port=self.http_port,
        )

    async def load(self) -> None:
        """Opens the model and reports ready.

        Raises:
            Exception: Whatever opening it raises; the server stays NOT_SERVING.
        """
        start = time.perf_counter()
        self._model = model = await self._open_model()
        self.service.engine = model.engine
        settle_garbage_collector()
        self._readiness.enter(State.READY)
        self._watching = asyncio.create_task(model.watch())
        self._watching.add_done_callback(self._note_end_of_watch)
        self._announce("ready", **model.facts(), load_seconds=round(time.perf_counter() - start, 3))

    @abstractmethod
    async def _open_model(self) -> ServedModel:
        """Returns a model that accepts work immediately. Raises whatever prevents that."""

    @property
    def state(self) -> str:
        """One of `metrics.STATES`."""
        return self._readiness.state.word

    @property
    def is_loaded(self) -> bool:
        """Whether `load` has reported ready, even if the server has stopped serving since."""
        return self._model is not None

    def check_health(self) -> None:
        """Does nothing while calls can be served.

        Raises:
            ServingError: They cannot, temporarily or permanently.
        """
        if self._unrecoverable.is_set():
            raise model_stalled()
        self._readiness.check()

    async def wait_until_unrecoverable(self) -> None:
        """Returns when the device is unrecoverable and the process must be restarted."""
        await self._unrecoverable.wait()

    async def drain(self, delay_seconds: float) -> None:
        """Reports NOT_SERVING, keeps serving for the delay so that balancers notice, then refuses calls."""
        _log.info("draining", delay_seconds=delay_seconds)
        if self._watching is not None:
            self._watching.cancel()
        self._readiness.enter(State.DRAINING)
        if self._http is not None:
            self._http.drain()
        await asyncio.sleep(delay_seconds)
        self._refuse_calls()

    async def stop(self, grace_seconds: float) -> None:
        """Refuses new calls, lets accepted ones finish within the grace, and closes everything.

        Has no effect if the server is stopped already.
        """
        if self._is_stopped:  # gRPC crashes if it is stopped again
            return
        self._is_stopped = True
        _log.info("stopping", grace_seconds=grace_seconds)
        self._refuse_calls()
        await self._finish_calls(grace_seconds)
        if self._http is not None:
            await self._http.close()
        await self._close_grpc()
        if self._model is not None:
            is_forced = self._cut_off.is_set() or self._unrecoverable.is_set()
            await self._model.stop(FORCED_LANES_STOP_SECONDS if is_forced else LANES_STOP_SECONDS)
        if self._metrics_server is not None:
            await asyncio.to_thread(self._metrics_server.shutdown)
            self._metrics_server.server_close()
        if self._spans is not None:
            with suppress(TimeoutError):  # the collector may be unreachable
                await asyncio.wait_for(in_daemon_thread(self._spans.flush), _FLUSH_SECONDS)
        _log.info("stopped")

    def cut_off(self) -> None:
        """Cuts a running `stop` short: cancels calls and waits at most 0.25 s for a running batch."""
        self._cut_off.set()

    async def _watch_grpc(self) -> None:
        """Detects that gRPC ended by itself: no call is served then, while everything else looks alive."""
        try:
            await self._grpc.wait_for_termination()
        except Exception:  # noqa: BLE001 — any error may have ended it
            _log.exception("grpc_died")
        if not self._is_stopped:
            self._unrecoverable.set()

    def _note_end_of_watch(self, watch: asyncio.Task[None]) -> None:
        if watch.cancelled():
            return
        if (error := watch.exception()) is not None:
            _log.error("watchdog_died", exc_info=error)
        self._unrecoverable.set()

    def _refuse_calls(self) -> None:
        self._readiness.enter(State.STOPPING)
        self.messages.drain_streams()
        self.interceptor.refuse_uploads()
        self.interceptor.close_watches()
        if self._http is not None:
            self._http.drain()
            self._http.refuse_uploads()

    async def _finish_calls(self, grace_seconds: float) -> None:
        """Waits until accepted calls have their responses and no more arrive, at most for the grace."""
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await first_of(self._calls_end(), self._cut_off.wait())

    async def _calls_end(self) -> None:
        """Returns when no call is in progress and none has arrived for a while.

        Clients that keep calling although they are refused could delay that indefinitely, so the number of
        rounds is limited. Either way they get UNAVAILABLE, but after the last round without a reason.
        """
        await self.accounting.in_progress.wait_for_end()
        connections, loop = Connections(self.port), asyncio.get_running_loop()
        connections.stop_accepting()
        quiet_rounds = 0
        for _ in range(_MAX_ROUNDS):
            if quiet_rounds == _QUIET_ROUNDS:
                break
            started, began = self.accounting.in_progress.started, loop.time()
            await asyncio.sleep(_ROUND_SECONDS)
            # On a machine that is late with this, calls are late too.
            is_late = loop.time() - began > 2 * _ROUND_SECONDS
            has_come = self.accounting.in_progress.started != started
            is_quiet = not (has_come or is_late) and connections.are_read() and connections.are_written()
            quiet_rounds = quiet_rounds + 1 if is_quiet else 0
        await self.accounting.in_progress.wait_for_end()

    async def _close_grpc(self) -> None:
        Connections(self.port).end()  # before gRPC cancels their remaining calls
        await self._grpc.stop(None)

    def _http_door(self) -> HttpDoor | None:
        """Returns the HTTP port, if there is to be one. Raises `ModuleNotFoundError` without its packages."""
        settings = self._settings
        if settings.http_listen is None:
            return None
        from alignserve_server.http.door import HttpDoor, HttpOptions

        options = HttpOptions(
            listen=settings.http_listen,
            is_shared=settings.shares_ports,
            request_timeout_seconds=settings.request_timeout_seconds,
            idle_timeout_seconds=settings.http_idle_timeout_seconds,
            max_connections=min(settings.http_max_connections, max_open_files() // 2),  # others need some
            cors_origins=settings.cors_origins,
            max_request_fields=_max_request_fields(settings),
            has_page=settings.http_page,
        )
        shares = self.interceptor.uploads, self.interceptor.streams
        return HttpDoor(self.service, self.messages, self.accounting, *shares, options)

    def _certificates(self) -> Certificates | None:
        settings = self._settings
        if settings.tls_certificate is None or settings.tls_key is None:
            return None
        files = CertificateFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
        return Certificates(files, self.metrics.certificate_expiry.labels("server").set)


class Server(CallServer):
    """A server with its model in this process."""

    part = Part.WHOLE

    def __init__(
        self,
        settings: Settings,
        load_encoder: LoadEncoder,
        announce: Announce | None = None,
        tell_state: TellState = lambda _: None,
        usages: Usages | None = None,
    ) -> None:
        super().__init__(settings, announce, tell_state, usages)
        self._load_encoder = load_encoder

    async def _open_model(self) -> LoadedModel:
        """Loads the model and runs it once per modality."""
        load_model = partial(load_warm, self._settings, self._load_encoder, self._version)
        encoder, batch_sizes = await in_daemon_thread(load_model)
        model = LoadedModel.start(
            self._settings, encoder, batch_sizes, self._readiness, self.metrics, self._observer
        )
        model.running.publish(self.metrics, self._version)
        return model


async def serve(
    settings: Settings,
    load_encoder: LoadEncoder,
    announce: Announce | None = None,
    tell_state: TellState = lambda _: None,
    *,
    usages: Usages | None = None,
    listens_first: bool = True,
) -> int:
    """Serves with the model in this process; see `run_server`.

    Args:
        settings: The server's settings.
        load_encoder: Loads the model.
        announce: Takes the events `listening` and `ready`; the default logs them.
        tell_state: Takes the state whenever it changes.
        usages: What each key has used of its quotas, if that is shared with other processes.
        listens_first: See `run_server`.
    """
    server = Server(settings, load_encoder, announce, tell_state, usages)
    return await run_server(server, settings, listens_first=listens_first)


async def run_server(server: CallServer, settings: Settings, *, listens_first: bool) -> int:
    """Serves until SIGTERM or SIGINT, then drains and stops. A second signal cuts the stop short.

    An unrecoverable device ends it too.

    Args:
        server: A server that is not started.
        settings: The server's settings.
        listens_first: Whether the ports open before the model is loaded, so that probes get a response, or
            afterwards, so that other processes on the same port serve in the meantime.

    Returns:
        The exit code: 0 after a signal, 3 if the device is unrecoverable.

    Raises:
        StartupError: A port cannot be opened.
        Exception: Whatever loading the model raises.
    """
    with received_signals() as signals:
        grace = 0.0
        try:
            if listens_first:
                await server.start()
            received = await signal_during(server.load(), signals)
            if not listens_first and received is None:
                await server.start()
            received = received or await signal_during(server.wait_until_unrecoverable(), signals)
            if received is None:
                _log.error("unrecoverable_stall", advice=RESTART_ADVICE)
                grace = min(settings.shutdown_grace_seconds, LANES_STOP_SECONDS)
                return EXIT_UNRECOVERABLE
            # SIGINT comes from a person at a terminal, and a server that was never ready is not in any
            # balancer's list: no balancer has to notice, so there is nothing to wait for.
            is_in_use = received == signal.SIGTERM and server.is_loaded
            delay = settings.drain_delay_seconds if is_in_use else 0.0
            if await signal_during(server.drain(delay), signals) is None:
                grace = settings.shutdown_grace_seconds
            return 0
        finally:
            stopping = asyncio.ensure_future(server.stop(grace))
            if await signal_during(asyncio.shield(stopping), signals) is not None:
                server.cut_off()
            await stopping


def _limits(settings: Settings) -> RequestLimits:
    set_by_name = {field.name for field in fields(RequestLimits)} - {"image_formats"}
    return RequestLimits(
        **settings.model_dump(include=set_by_name),
        image_formats=(*IMAGE_FORMATS, *settings.accepted_extra_formats),
    )


def _connection_limits(settings: Settings) -> ConnectionLimits:
    return ConnectionLimits(
        request_timeout_seconds=settings.request_timeout_seconds,
        max_uploads=settings.max_uploads,
        max_streams=settings.max_streams,
        max_request_fields=_max_request_fields(settings),
    )


def _max_request_fields(settings: Settings) -> int:
    """Returns several times those of the largest valid request, so that larger ones still get an error."""
    largest = 2 * settings.max_client_batch_size + settings.max_labels + settings.max_prompt_templates
    return max(1 << 13, 4 * largest)


def _port_options(settings: Settings) -> PortOptions:
    return PortOptions(
        is_shared=settings.shares_ports,
        max_request_bytes=settings.max_request_bytes,
        max_queue_size=settings.max_queue_size,
        keepalive_time_seconds=settings.keepalive_time_seconds,
        keepalive_timeout_seconds=settings.keepalive_timeout_seconds,
        max_connection_age_seconds=settings.max_connection_age_seconds,
        max_connection_age_grace_seconds=settings.max_connection_age_grace_seconds,
    )
