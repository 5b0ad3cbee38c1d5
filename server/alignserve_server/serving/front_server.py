"""A front: takes calls and prepares their inputs for a model that runs in the device process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from alignserve_server.access.usage import Usages
from alignserve_server.api.readiness import State
from alignserve_server.batching.engine import Engine
from alignserve_server.host.daemon_thread import in_daemon_thread
from alignserve_server.host.waiting import first_of
from alignserve_server.observability.logs import get_logger
from alignserve_server.observability.metrics import Part
from alignserve_server.serving.device_link import DeviceLink
from alignserve_server.serving.loaded_model import InputSide, watchdog_of
from alignserve_server.serving.process import Announce, TellState
from alignserve_server.serving.reading import LoadReader, load_reader
from alignserve_server.serving.server import CallServer, run_server
from alignserve_server.serving.watchdog import Watchdog
from alignserve_server.settings import Settings

_log = get_logger(__name__)

_STATES = {"loading": State.LOADING, "serving": State.READY, "stalled": State.STALLED}


@dataclass(frozen=True, slots=True)
class _RemoteModel:
    """The model of the device process, and this process's part of the work."""

    link: DeviceLink
    inputs: InputSide
    watchdog: Watchdog

    @property
    def engine(self) -> Engine:
        return self.inputs.engine

    def facts(self) -> dict[str, object]:
        info = self.link.info
        return {"model_id": info.model_id, "fingerprint": info.fingerprint}

    async def watch(self) -> None:
        await first_of(self.watchdog.run(), self._model_changes())

    async def stop(self, timeout_seconds: float) -> None:  # noqa: ARG002 — the device process waits for batches
        await self.link.close()
        self.inputs.stop()

    async def _model_changes(self) -> None:
        """Returns when another model is served, whose inputs may be prepared differently."""
        await self.link.keep()
        _log.error("model_changed", model_id=self.link.info.model_id)


class FrontServer(CallServer):
    """A front in this process."""

    part = Part.FRONT

    def __init__(
        self,
        settings: Settings,
        device_path: str,
        announce: Announce | None = None,
        tell_state: TellState = lambda _: None,
        *,
        usages: Usages | None = None,
        load_reader: LoadReader = load_reader,
    ) -> None:
        """Opens no port yet.

        Args:
            settings: The server's settings.
            device_path: The device process's socket.
            announce: Takes the events `listening` and `ready`; the default logs them.
            tell_state: Takes the state whenever it changes.
            usages: What each key has used of its quotas, if that is shared with other fronts.
            load_reader: Returns what prepares inputs.
        """
        super().__init__(settings, announce, tell_state, usages)
        self._load_reader = load_reader
        self._link = DeviceLink(device_path, self._tracing.note_batch, self._follow_device)

    async def _open_model(self) -> _RemoteModel:
        """Waits for the device process, and learns from it how inputs are prepared."""
        greeting = await self._link.connect()
        load = partial(self._load_reader, self._settings, greeting, self._link.new_pixels)
        reader = await in_daemon_thread(load)
        inputs = InputSide.start(self._settings, reader, self._link, self._observer)
        watchdog = watchdog_of(self._settings, [inputs.watched()], self._readiness, self.metrics)
        return _RemoteModel(self._link, inputs, watchdog)

    async def load(self) -> None:
        """Connects to the device process and reports its state, which is usually ready."""
        await super().load()
        self._follow_device(self._link.state)

    def _follow_device(self, state: str) -> None:
        """Takes over the state of the device process, once this process is ready too."""
        if self._model is not None and state in _STATES:  # a device that drains still serves its fronts
            self._readiness.enter(_STATES[state])


async def serve_front(
    settings: Settings,
    device_path: str,
    announce: Announce | None = None,
    tell_state: TellState = lambda _: None,
    *,
    usages: Usages | None = None,
    listens_first: bool = True,
) -> int:
    """Takes calls for the device process with this socket; see `FrontServer` and `run_server`."""
    server = FrontServer(settings, device_path, announce, tell_state, usages=usages)
    return await run_server(server, settings, listens_first=listens_first)
