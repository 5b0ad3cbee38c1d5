"""The device process: runs the model for the fronts, which take the calls. Its only port is for /metrics."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry

from alignserve_server.api.readiness import Readiness, State
from alignserve_server.fronts.device import DeviceServer
from alignserve_server.host.daemon_thread import in_daemon_thread
from alignserve_server.host.garbage import settle_garbage_collector
from alignserve_server.observability.batch_observer import MetricsObserver
from alignserve_server.observability.batch_report import BatchReport
from alignserve_server.observability.logs import dropped_lines, get_logger
from alignserve_server.observability.metrics import Metrics, Part
from alignserve_server.observability.metrics_http import serve_metrics_page
from alignserve_server.observability.tracing import Tracing
from alignserve_server.serving.exit_codes import EXIT_UNRECOVERABLE
from alignserve_server.serving.loaded_model import watchdog_of
from alignserve_server.serving.loading import LoadEncoder, load_warm
from alignserve_server.serving.process import (
    FORCED_LANES_STOP_SECONDS,
    LANES_STOP_SECONDS,
    RESTART_ADVICE,
    Announce,
    TellState,
)
from alignserve_server.serving.running_model import RunningModel
from alignserve_server.serving.signals import received_signals, signal_during
from alignserve_server.serving.watched import Watched
from alignserve_server.settings import Settings

_log = get_logger(__name__)

_LATE_SECONDS = 5.0  # after drain and grace, by which every front has left


class ReportingObserver(MetricsObserver):
    """Counts batches, and reports them to the fronts whose sampled calls were in them."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(metrics, Tracing(None, 0.0))
        self.fronts: DeviceServer | None = None

    def batch_ended(self, report: BatchReport) -> None:
        super().batch_ended(report)
        if report.waiting_since and self.fronts is not None:
            self.fronts.report(report)


class Device:
    """Runs the model on the running event loop, for fronts that connect to a socket."""

    def __init__(
        self,
        settings: Settings,
        load_encoder: LoadEncoder,
        path: str,
        announce: Announce,
        tell_state: TellState,
    ) -> None:
        """Does nothing yet; see `serve_device` for the arguments."""
        self._settings = settings
        self._load_encoder = load_encoder
        self._path = path
        self._announce = announce
        self._tell_state = tell_state
        self._readiness = Readiness(self._publish)
        self.metrics = Metrics(CollectorRegistry(), Part.DEVICE)
        self.metrics.log_lines_dropped.set_function(dropped_lines)
        self._observer = ReportingObserver(self.metrics)
        self._metrics_server: WSGIServer | None = None
        self._model: RunningModel | None = None
        self._fronts: DeviceServer | None = None
        self._is_stopped = False

    async def run(self) -> None:
        """Loads the model and serves fronts; returns when only another process can.

        Raises:
            Exception: Whatever loading raises.
        """
        start = time.perf_counter()
        self._announce("listening", metrics_port=self._open_metrics())
        server_version = version("alignserve-server")
        load_model = partial(load_warm, self._settings, self._load_encoder, server_version)
        encoder, batch_sizes = await in_daemon_thread(load_model)
        self._model = model = RunningModel.start(
            self._settings, encoder, batch_sizes, self.metrics, self._observer
        )
        model.publish(self.metrics, server_version)
        self._observer.fronts = self._fronts = DeviceServer(model.backend, encoder.input_spec())
        settle_garbage_collector()
        self._readiness.enter(State.READY)
        await self._fronts.start(self._path)
        self._announce("ready", **model.facts(), load_seconds=round(time.perf_counter() - start, 3))
        watched: list[Watched] = [model.watched()]
        watchdog = watchdog_of(
            self._settings, watched, self._readiness, self.metrics, model.batcher.device_lost
        )
        await watchdog.run()

    async def drain(self) -> None:
        """Waits until the fronts have left, which they do when their calls are answered."""
        _log.info("draining")
        self._readiness.enter(State.DRAINING)
        patience = self._settings.drain_delay_seconds + self._settings.shutdown_grace_seconds + _LATE_SECONDS
        if self._fronts is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._fronts.fronts_gone(), patience)

    async def stop(self, timeout_seconds: float) -> None:
        """Disconnects fronts and stops the lanes, waiting at most the timeout for running batches.

        Has no effect if it is stopped already.
        """
        if self._is_stopped:
            return
        self._is_stopped = True
        self._readiness.enter(State.STOPPING)
        _log.info("stopping")
        if self._fronts is not None:
            await self._fronts.stop()
        if self._model is not None:
            await self._model.stop(timeout_seconds)
        if self._metrics_server is not None:
            await asyncio.to_thread(self._metrics_server.shutdown)
            self._metrics_server.server_close()
        _log.info("stopped")

    def _publish(self, state: str) -> None:
        self._tell_state(state)
        if self._fronts is not None:
            self._fronts.tell(state)

    def _open_metrics(self) -> int:
        if self._settings.metrics_listen is None:
            return 0
        self._metrics_server = serve_metrics_page(
            self._settings.metrics_listen, self.metrics.registry, lambda: self._readiness.state.word
        )
        return self._metrics_server.server_port


async def serve_device(
    settings: Settings, load_encoder: LoadEncoder, path: str, announce: Announce, tell_state: TellState
) -> int:
    """Runs the model until SIGTERM or SIGINT, and then until the fronts have left, or a second signal comes.

    Args:
        settings: The server's settings.
        load_encoder: Loads the model.
        path: The socket that fronts connect to.
        announce: Takes the events `listening`, of the metrics, and `ready`.
        tell_state: Takes the state whenever it changes.

    Returns:
        The exit code: 0 after a signal, 3 if the device is unrecoverable.

    Raises:
        Exception: Whatever loading the model raises.
    """
    device = Device(settings, load_encoder, path, announce, tell_state)
    timeout_seconds = FORCED_LANES_STOP_SECONDS
    with received_signals() as signals:
        try:
            if await signal_during(device.run(), signals) is None:
                _log.error("unrecoverable_stall", advice=RESTART_ADVICE)
                return EXIT_UNRECOVERABLE
            if await signal_during(device.drain(), signals) is None:
                timeout_seconds = LANES_STOP_SECONDS
            return 0
        finally:
            await device.stop(timeout_seconds)
