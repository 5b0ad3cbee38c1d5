"""A front's side of the cut: an `InferenceBackend` whose work is done by the device process."""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
from collections.abc import Callable
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.backend import AdmissionRequest, PreparedItems
from alignserve_server.batching.fair_queue import Flow
from alignserve_server.batching.request import Embedded
from alignserve_server.errors import ModelLoading, ServingError
from alignserve_server.fronts import messages
from alignserve_server.fronts.front_memory import FrontMemory, Lease
from alignserve_server.fronts.memory import create
from alignserve_server.fronts.wire import Wire
from alignserve_server.model.encoder import ModelInfo, PixelValues
from alignserve_server.observability.batch_report import BatchReport

_Found: TypeAlias = NDArray[np.float32] | None

_LOOK_UP_SECONDS = 30.0  # after which the image is decoded all the same
MEMORY_BYTES = 2 << 30  # addresses; only pages that were written take up memory


class DeviceGone(ModelLoading):
    """The device process has ended; another one is being started."""

    def __init__(self) -> None:
        super().__init__(
            "the process that runs the model has ended; retry after the delay given", retry_delay_seconds=1.0
        )


class FrontBackend:
    """One connection to the device. Use only on the event loop's thread, unless a method says otherwise.

    Attributes:
        info: The model being served.
        greeting: What the device passes to each front.
        closed: Done once the device is gone or the connection is closed.
    """

    info: ModelInfo
    greeting: bytes
    _cached: frozenset[str]  # the modalities that the device caches
    _memory: FrontMemory

    def __init__(
        self,
        connected: socket.socket,
        memory: mmap.mmap,
        on_report: Callable[[BatchReport], object],
        on_state: Callable[[str], object],
    ) -> None:
        """Starts to read from a socket on which the memory was sent; use `connect`."""
        self._loop = asyncio.get_running_loop()
        self._unused_memory = memory
        self._welcomed: asyncio.Future[None] = self._loop.create_future()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._admitted: dict[int, str] = {}  # modality by reservation
        self._pending: dict[int, asyncio.Future[Any]] = {}  # what a caller waits for, by reservation
        self._leases: dict[int, Lease] = {}  # what the device may read and write, by reservation
        self._checks: dict[int, asyncio.Future[None]] = {}
        self._look_ups: dict[int, SimpleQueue[_Found]] = {}
        self._numbers = count(1)
        self._handlers: dict[int, Callable[[memoryview], object]] = {
            messages.WELCOME: self._welcome,
            messages.STATE: lambda body: on_state(messages.decode_state(body)),
            messages.ADMITTED: self._end_admission,
            messages.REFUSED: self._refuse,
            messages.ANSWER: self._answer,
            messages.FAILED: self._fail,
            messages.DONE: self._end_lease,
            messages.FOUND: self._end_look_up,
            messages.CHECKED: self._end_check,
            messages.CROWDED: self._fail_check,
            messages.REPORT: lambda body: on_report(messages.decode_report(body)),
        }
        self._wire = Wire(connected, self._handle, self._lose)

    @classmethod
    async def connect(
        cls,
        path: str,
        on_report: Callable[[BatchReport], object],
        on_state: Callable[[str], object],
        *,
        memory_bytes: int = MEMORY_BYTES,
    ) -> FrontBackend:
        """Connects to the device that listens on a path.

        Args:
            path: Of a Unix socket.
            on_report: Called with each batch that has sampled items of this front, before their answers.
            on_state: Called with the state of the device, at first and whenever it changes.
            memory_bytes: Size of the memory shared with the device. Pages that were never written are free.

        Raises:
            OSError: No device listens there, or the device refuses the connection.
        """
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.setblocking(False)
            connected.connect(path)
            descriptor, shared = create(memory_bytes)
            try:
                socket.send_fds(connected, [messages.encode_hello(memory_bytes)], [descriptor])
            finally:
                os.close(descriptor)
        except BaseException:
            connected.close()
            raise
        backend = cls(connected, shared, on_report, on_state)
        try:
            await backend._welcomed
        except BaseException:
            await backend.close()
            raise
        return backend

    async def close(self) -> None:
        """Closes the connection: the device withdraws whatever is still there."""
        self._wire.close()
        self._lose()

    async def admit(self, reservation: int, request: AdmissionRequest) -> None:
        """Takes room on the device; see `InferenceBackend`."""
        self._check_open()
        self._memory.check_fits(request.modality, request.items)
        self._admitted[reservation] = request.modality
        self._wire.send(messages.encode_admit(reservation, request))
        try:
            await self._answer_to(reservation)
        except BaseException:
            self.release(reservation, is_served=False)  # it may have been granted in the meantime
            raise

    def look_up(self, modality: str, key: bytes) -> NDArray[np.float32] | None:
        """Returns an embedding in the device's cache; see `InferenceBackend`."""
        if modality not in self._cached:
            return None
        found: SimpleQueue[_Found] = SimpleQueue()
        try:
            self._loop.call_soon_threadsafe(self._ask, modality, key, found)
            return found.get(timeout=_LOOK_UP_SECONDS)
        except (RuntimeError, Empty):  # the loop is closed, or does not run
            return None

    async def embed(self, reservation: int, items: PreparedItems) -> Embedded:
        """Embeds items on the device; see `InferenceBackend`."""
        self._check_open()
        try:
            if self._admitted[reservation] == "text":
                texts, lease = await self._memory.place_texts(reservation, items)
                message = messages.encode_texts(texts)
            else:
                images, lease = await self._memory.place_images(reservation, items)
                message = messages.encode_images(images)
            self._leases[reservation] = lease
            self._wire.send(message)
            embedded: Embedded = await self._answer_to(reservation)
            return embedded
        except BaseException:
            self.release(reservation, is_served=False)
            raise

    def release(self, reservation: int, *, is_served: bool = True) -> None:
        """Frees what is left of a reservation; see `InferenceBackend`."""
        if self._admitted.pop(reservation, None) is not None:
            self._wire.send(messages.encode_release(reservation, is_served=is_served))

    async def check_not_crowded(self, flow: Flow) -> None:
        """Returns if texts of a flow would soon get room; see `InferenceBackend`."""
        self._check_open()
        number = next(self._numbers)
        answer = self._checks[number] = self._loop.create_future()
        self._wire.send(messages.encode_check(number, flow))
        try:
            await answer
        finally:
            self._checks.pop(number, None)
            del answer  # as in `_answer_to`

    def new_pixels(self, shape: tuple[int, ...]) -> PixelValues:
        """Returns an uninitialized array for an image, in shared memory if there is room. Thread-safe."""
        return self._memory.new_pixels(shape)

    def _check_open(self) -> None:
        if not self._wire.is_open:
            raise DeviceGone()

    async def _answer_to(self, reservation: int) -> Any:
        answer = self._pending[reservation] = self._loop.create_future()
        try:
            return await answer
        finally:
            self._pending.pop(reservation, None)
            del answer  # its error has this frame in the traceback: a cycle

    def _ask(self, modality: str, key: bytes, found: SimpleQueue[_Found]) -> None:
        if not self._wire.is_open:
            found.put(None)
            return
        number = next(self._numbers)
        self._look_ups[number] = found
        self._wire.send(messages.encode_look_up(number, modality, key))

    def _lose(self) -> None:
        """Fails all that is pending: the device is gone."""
        if self.closed.done():
            return
        self.closed.set_result(None)
        if self._welcomed.done():
            self._memory.fail_waiting(DeviceGone)
        else:
            self._welcomed.set_exception(ConnectionError("the device has refused the connection"))
        for answer in (*self._pending.values(), *self._checks.values()):
            _fail(answer, DeviceGone())
        for found in self._look_ups.values():
            found.put(None)
        for held in (self._admitted, self._leases, self._look_ups, self._handlers):
            held.clear()  # the handlers have this object: a cycle

    def _handle(self, kind: int, body: memoryview) -> None:
        self._handlers[kind](body)

    def _welcome(self, body: memoryview) -> None:
        self.info, self._cached, self.greeting = messages.decode_welcome(body)
        self._memory = FrontMemory(self._unused_memory, self.info)
        if not self._welcomed.done():
            self._welcomed.set_result(None)

    def _end_admission(self, body: memoryview) -> None:
        _resolve(self._pending.get(messages.decode_number(body)))

    def _refuse(self, body: memoryview) -> None:
        reservation, error = messages.decode_error(body)
        self._admitted.pop(reservation, None)
        _fail(self._pending.get(reservation), error)

    def _answer(self, body: memoryview) -> None:
        reservation, queue_seconds, compute_seconds, batch_size, cached, runs = messages.decode_answer(body)
        self._admitted.pop(reservation, None)
        lease = self._leases.pop(reservation)
        answer = self._pending.get(reservation)
        if answer is not None and not answer.done():
            embeddings = self._memory.read_answer(lease)
            answer.set_result(Embedded(embeddings, queue_seconds, compute_seconds, batch_size, cached, runs))
        self._memory.give_back(lease)

    def _fail(self, body: memoryview) -> None:
        reservation, error = messages.decode_error(body)
        self._admitted.pop(reservation, None)
        _fail(self._pending.get(reservation), error)

    def _end_lease(self, body: memoryview) -> None:
        self._memory.give_back(self._leases.pop(messages.decode_number(body)))

    def _end_look_up(self, body: memoryview) -> None:
        number, found = messages.decode_found(body)
        self._look_ups.pop(number).put(found)

    def _end_check(self, body: memoryview) -> None:
        _resolve(self._checks.get(messages.decode_number(body)))

    def _fail_check(self, body: memoryview) -> None:
        number, error = messages.decode_error(body)
        _fail(self._checks.get(number), error)


def _resolve(answer: asyncio.Future[None] | None) -> None:
    if answer is not None and not answer.done():  # not if the caller has left
        answer.set_result(None)


def _fail(answer: asyncio.Future[Any] | None, error: ServingError) -> None:
    if answer is not None and not answer.done():
        answer.set_exception(error)
