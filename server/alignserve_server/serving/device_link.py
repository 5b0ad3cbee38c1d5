"""A front's backend: the device process, through connections that are renewed whenever it restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.backend import AdmissionRequest, PreparedItems
from alignserve_server.batching.fair_queue import Flow
from alignserve_server.batching.request import Embedded
from alignserve_server.fronts.front import DeviceGone, FrontBackend
from alignserve_server.model.encoder import ModelInfo, PixelValues
from alignserve_server.observability.batch_report import BatchReport
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)

_RETRY_SECONDS = 0.05  # while the device process starts, which takes seconds


class DeviceLink:
    """An `InferenceBackend`. While no device process is connected, calls fail with `DeviceGone`."""

    def __init__(
        self,
        path: str,
        on_report: Callable[[BatchReport], object],
        on_state: Callable[[str], object],
    ) -> None:
        """Does not connect yet.

        Args:
            path: The device process's socket.
            on_report: Takes the batches of sampled calls.
            on_state: Takes the device process's state, one of `metrics.STATES`: `loading` if there is none.
        """
        self._path = path
        self._on_report = on_report
        self._on_state = on_state
        self.state = "loading"  # of the device process
        self._connection: FrontBackend | None = None
        self._model: tuple[ModelInfo, bytes]  # and the greeting that came with it
        self._admitted_by: dict[int, FrontBackend] = {}  # by reservation that has not been embedded

    async def connect(self) -> bytes:
        """Waits until a device process is ready; returns its greeting."""
        connection = await self._next_connection()
        self._model = connection.info, connection.greeting
        self._use(connection)
        return connection.greeting

    async def keep(self) -> None:
        """Connects again whenever the device process has ended; returns if it then serves another model."""
        is_same_model = True
        while is_same_model:
            await asyncio.shield(self._connected().closed)
            self._take_state("loading")
            self._connection = None  # and its memory
            _log.warning("device_disconnected")
            is_same_model = await self._reconnect()

    async def close(self) -> None:
        """Leaves the device process, which withdraws what is left of this one's calls."""
        if self._connection is not None:
            await self._connection.close()

    @property
    def info(self) -> ModelInfo:
        """The model being served."""
        return self._model[0]

    async def admit(self, reservation: int, request: AdmissionRequest) -> None:
        """Takes room; see `InferenceBackend`. Raises `DeviceGone` too."""
        connection = self._connected()
        await connection.admit(reservation, request)
        self._admitted_by[reservation] = connection

    def look_up(self, modality: str, key: bytes) -> NDArray[np.float32] | None:
        """Returns a cached embedding; see `InferenceBackend`."""
        connection = self._connection
        return None if connection is None else connection.look_up(modality, key)

    async def embed(self, reservation: int, items: PreparedItems) -> Embedded:
        """Embeds items; see `InferenceBackend`. Raises `DeviceGone` too."""
        return await self._admitted_by.pop(reservation).embed(reservation, items)

    def release(self, reservation: int, *, is_served: bool = True) -> None:
        """Frees what is left of a reservation; see `InferenceBackend`."""
        connection = self._admitted_by.pop(reservation, None)
        if connection is not None:
            connection.release(reservation, is_served=is_served)

    async def check_not_crowded(self, flow: Flow) -> None:
        """Returns if texts would soon get room; see `InferenceBackend`. Raises `DeviceGone` too."""
        await self._connected().check_not_crowded(flow)

    def new_pixels(self, shape: tuple[int, ...]) -> PixelValues:
        """Returns an uninitialized array for an image, shared with the device if possible. Thread-safe."""
        connection = self._connection
        return np.empty(shape, np.uint8) if connection is None else connection.new_pixels(shape)

    def _connected(self) -> FrontBackend:
        if self._connection is None:
            raise DeviceGone()
        return self._connection

    async def _reconnect(self) -> bool:
        """Waits until the next device process is ready; returns whether it serves the same model."""
        connection = await self._next_connection()
        if (connection.info, connection.greeting) != self._model:
            await connection.close()
            return False
        self._use(connection)
        _log.info("device_connected")
        return True

    async def _next_connection(self) -> FrontBackend:
        while True:
            with suppress(OSError):
                return await FrontBackend.connect(self._path, self._on_report, self._take_state)
            await asyncio.sleep(_RETRY_SECONDS)

    def _use(self, connection: FrontBackend) -> None:
        self._connection = connection
        self._on_state(self.state)

    def _take_state(self, state: str) -> None:
        self.state = state
        if self._connection is not None:  # not before calls can use it
            self._on_state(state)
