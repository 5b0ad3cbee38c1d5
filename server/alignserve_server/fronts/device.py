"""The device's side of the cut: serves one backend to any number of front processes."""

from __future__ import annotations

import asyncio
import os
import socket
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from mmap import mmap
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.backend import AdmissionRequest, PreparedItems
from alignserve_server.batching.fair_queue import Flow
from alignserve_server.batching.local_backend import LocalBackend
from alignserve_server.batching.request import Embedded
from alignserve_server.errors import ServingError
from alignserve_server.fronts import memory, messages
from alignserve_server.fronts.listener import Listener
from alignserve_server.fronts.wire import Wire
from alignserve_server.modality import MODALITIES
from alignserve_server.model.encoder import TokenIds
from alignserve_server.observability.batch_report import BatchReport
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)

_NUMBER_BITS = 48  # of a reservation: the number that the front chose; the higher bits name the front
_NUMBER_MASK = (1 << _NUMBER_BITS) - 1


class DeviceServer:
    """Serves a backend on a Unix socket. Use only on the event loop's thread."""

    def __init__(self, backend: LocalBackend, greeting: bytes = b"") -> None:
        """Starts without fronts; `greeting` is passed to each front with the model's description."""
        self._backend = backend
        cached = frozenset(filter(backend.has_cache, MODALITIES))
        self._welcome = messages.encode_welcome(messages.Welcome(backend.info, cached, greeting))
        self._state = "serving"
        self._listener: Listener | None = None
        self._numbers = count(1)
        self._fronts: dict[int, _Front] = {}
        self._has_no_fronts = asyncio.Event()
        self._has_no_fronts.set()

    async def start(self, path: str) -> None:
        """Listens on a path. Raises what `Listener` does."""
        self._listener = Listener(Path(path), self._accept)

    async def stop(self) -> None:
        """Closes all connections and removes the socket; no effect if that is done."""
        if self._listener is not None:
            self._listener.close()
        for front in list(self._fronts.values()):
            front.close()

    async def fronts_gone(self) -> None:
        """Returns when no front is connected."""
        await self._has_no_fronts.wait()

    def tell(self, state: str) -> None:
        """Sends a state to all fronts, and to each that connects later."""
        self._state = state
        for front in self._fronts.values():
            front.wire.send(messages.encode_state(state))

    def report(self, report: BatchReport) -> None:
        """Passes a batch to the fronts whose sampled reservations it names. Call it before the answers."""
        by_front: defaultdict[int, dict[int, float]] = defaultdict(dict)
        for reservation, since in report.waiting_since.items():
            by_front[reservation >> _NUMBER_BITS][reservation & _NUMBER_MASK] = since
        for number, waiting_since in by_front.items():
            if number in self._fronts:
                self._fronts[number].wire.send(messages.encode_report(report, waiting_since))

    def _accept(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        asyncio.get_running_loop().add_reader(connected, self._read_hello, connected)

    def _read_hello(self, connected: socket.socket) -> None:
        """Reads what a front sends first, with its memory, and serves it from then on."""
        asyncio.get_running_loop().remove_reader(connected)
        descriptors: list[int] = []
        try:
            data, descriptors, _, _ = socket.recv_fds(connected, messages.HELLO_BYTES, 1)
            (descriptor,) = descriptors
            shared = memory.attach(descriptor, messages.decode_hello(data))
        except Exception as error:  # noqa: BLE001 — whatever a malformed message provokes
            _log.error("front_refused", reason=f"{type(error).__name__}: {error}")
            connected.close()
            return
        finally:
            for each in descriptors:
                os.close(each)
        number = next(self._numbers)
        front = _Front(self._backend, number, connected, shared, partial(self._forget, number))
        self._fronts[number] = front
        self._has_no_fronts.clear()
        front.wire.send(self._welcome)
        front.wire.send(messages.encode_state(self._state))

    def _forget(self, number: int) -> None:
        del self._fronts[number]
        if not self._fronts:
            self._has_no_fronts.set()


class _Request(NamedTuple):
    """A request that is being embedded."""

    rows: Sequence[NDArray[np.float32]]  # where its embeddings go, in parts
    pixels: Sequence[weakref.ref[NDArray[np.uint8]]]  # of images, in the places


class _Front:
    """A connected front, its reservations and its requests."""

    def __init__(
        self,
        backend: LocalBackend,
        number: int,
        connected: socket.socket,
        shared: mmap,
        on_gone: Callable[[], object],
    ) -> None:
        self._backend = backend
        self._prefix = number << _NUMBER_BITS
        self._memory = shared
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._dimension = backend.info.embedding_dimension
        self._max_text_bytes = memory.max_text_bytes(backend.info)
        self._reserved: dict[int, AdmissionRequest] = {}  # by the front's reservation
        self._requests: dict[int, _Request] = {}  # by reservation
        self._checks: set[asyncio.Task[None]] = set()
        self._handlers: dict[int, Callable[[memoryview], None]] = {
            messages.ADMIT: self._admit,
            messages.TEXTS: self._embed_texts,
            messages.IMAGES: self._embed_images,
            messages.RELEASE: self._release,
            messages.LOOK_UP: self._look_up,
            messages.CHECK: self._check,
        }
        self.wire = Wire(connected, self._handle, self._leave)

    def close(self) -> None:
        """Ends the connection, and frees all that the front held."""
        self.wire.close()
        self._leave()

    def _leave(self) -> None:
        self._handlers.clear()  # which have this object: a cycle
        self._requests.clear()
        for reservation in self._reserved:
            self._backend.release(self._prefix | reservation, is_served=False)
        for task in self._checks:
            task.cancel()
        del self._memory  # unmapped when no batch reads it any more
        self._on_gone()

    def _handle(self, kind: int, body: memoryview) -> None:
        self._handlers[kind](body)

    def _admit(self, body: memoryview) -> None:
        reservation, request = messages.decode_admit(body)
        if reservation in self._reserved or reservation > _NUMBER_MASK:
            raise ValueError(f"reservation {reservation} is in use or too large")
        try:
            turn = self._backend.request_room(self._prefix | reservation, request)
        except ServingError as error:
            self.wire.send(messages.encode_error(messages.REFUSED, reservation, error))
            return
        self._reserved[reservation] = request
        if turn is None:
            self.wire.send(messages.encode_number(messages.ADMITTED, reservation))
        else:
            turn.add_done_callback(partial(self._end_waiting, reservation))

    def _end_waiting(self, reservation: int, turn: asyncio.Future[None]) -> None:
        if not turn.cancelled():
            self.wire.send(messages.encode_number(messages.ADMITTED, reservation))

    def _embed_texts(self, body: memoryview) -> None:
        reservation, items, per_place, places = messages.decode_texts(body)
        tokens: list[TokenIds] = []
        sizes: list[int] = []
        for at, place in zip(range(0, items, per_place), places, strict=True):
            part_tokens, part_sizes = memory.read_texts(
                self._memory, place, min(per_place, items - at), self._max_text_bytes
            )
            tokens += part_tokens
            sizes += part_sizes
        request = _Request(self._rows(places, per_place, items), ())
        self._submit("text", reservation, PreparedItems.of_texts(tokens, sizes), request)

    def _embed_images(self, body: memoryview) -> None:
        images = messages.decode_images(body)
        shape = images.height, images.width, 3
        pixels = [memory.pixels_at(self._memory, place, shape) for place in images.places]
        rows = self._rows(images.answer_places, images.rows_per_place, len(pixels))
        request = _Request(rows, list(map(weakref.ref, pixels)))
        self._submit("image", images.reservation, PreparedItems(pixels, images.sizes, images.keys), request)

    def _rows(self, places: Sequence[int], per_place: int, count: int) -> list[NDArray[np.float32]]:
        """Returns the room for that many embeddings in places."""
        return [
            memory.rows_at(self._memory, place, min(per_place, count - at), self._dimension)
            for at, place in zip(range(0, count, per_place), places, strict=True)
        ]

    def _submit(self, modality: str, reservation: int, items: PreparedItems, request: _Request) -> None:
        admitted, number = self._reserved[reservation], len(items.payloads)
        if admitted.modality != modality or admitted.items < number or reservation in self._requests:
            raise ValueError(f"{number} {modality} items were not admitted under {reservation}")
        self._requests[reservation] = request
        self._backend.submit(self._prefix | reservation, items, partial(self._answer, reservation))

    def _answer(self, reservation: int, outcome: Embedded | ServingError) -> None:
        request = self._requests.pop(reservation)
        del self._reserved[reservation]
        if isinstance(outcome, ServingError):
            self.wire.send(messages.encode_error(messages.FAILED, reservation, outcome))
            self._when_unread(reservation, request)
            return
        at = 0
        for rows in request.rows:
            rows[:] = outcome.embeddings[at : at + len(rows)]
            at += len(rows)
        answer = messages.Answer(reservation, *outcome[1:])
        self.wire.send(messages.encode_answer(answer))

    def _release(self, body: memoryview) -> None:
        reservation, is_served = messages.decode_release(body)
        if self._reserved.pop(reservation, None) is None:
            return  # its answer has crossed this message
        self._backend.release(self._prefix | reservation, is_served=is_served)
        request = self._requests.pop(reservation, None)
        if request is not None:
            self._when_unread(reservation, request)

    def _when_unread(self, reservation: int, request: _Request) -> None:
        """Tells the front when nothing reads a request's places any more: a batch may be running."""
        watches: list[weakref.ref[NDArray[np.uint8]]] = []

        def forget(watch: weakref.ref[NDArray[np.uint8]]) -> None:
            watches.remove(watch)
            if not watches:
                self.wire.send(messages.encode_number(messages.DONE, reservation))

        def died(watch: weakref.ref[NDArray[np.uint8]]) -> None:  # on any thread
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(forget, watch)

        for each in request.pixels:
            pixels = each()
            if pixels is not None:
                watches.append(weakref.ref(pixels, died))
        if not watches:
            self.wire.send(messages.encode_number(messages.DONE, reservation))

    def _look_up(self, body: memoryview) -> None:
        number, modality, key = messages.decode_look_up(body)
        self.wire.send(messages.encode_found(number, self._backend.look_up(modality, key)))

    def _check(self, body: memoryview) -> None:
        number, flow = messages.decode_check(body)
        task = asyncio.create_task(self._answer_check(number, flow))
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    async def _answer_check(self, number: int, flow: Flow) -> None:
        try:
            await self._backend.check_not_crowded(flow)
        except ServingError as error:
            self.wire.send(messages.encode_error(messages.CROWDED, number, error))
        else:
            self.wire.send(messages.encode_number(messages.CHECKED, number))
