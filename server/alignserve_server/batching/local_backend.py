"""The in-process backend: admission, caches and queues of all callers, called directly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.admission import AdmissionController, QueueLimits, Reservation, is_served
from alignserve_server.batching.backend import AdmissionRequest, PreparedItems
from alignserve_server.batching.batcher import Batcher
from alignserve_server.batching.embedding_cache import EmbeddingCache
from alignserve_server.batching.fair_queue import Flow
from alignserve_server.batching.observer import BatchObserver
from alignserve_server.batching.request import Answer, Embedded, Request
from alignserve_server.errors import ServingError
from alignserve_server.modality import MODALITIES
from alignserve_server.model.encoder import ModelInfo


@dataclass(frozen=True, slots=True)
class CacheBytes:
    """The size of each modality's embedding cache, in bytes."""

    image: int
    text: int


@dataclass(eq=False, slots=True)
class _Admitted:
    """A call that has room or waits for it, and its items once they are submitted."""

    call: AdmissionRequest
    room: Reservation
    request: Request | None = None


class LocalBackend:
    """An `InferenceBackend` whose `batcher` runs in this process.

    `request_room` and `submit` do the same as `admit` and `embed` with callbacks, so that a process that
    serves others needs no task for each request.
    """

    def __init__(
        self,
        info: ModelInfo,
        batcher: Batcher,
        observer: BatchObserver,
        limits: QueueLimits,
        cache_bytes: CacheBytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts empty; `limits` apply to each modality's queue, `clock` returns monotonic seconds."""
        self.info = info
        self._batcher = batcher
        self._admission = {
            modality: AdmissionController(modality, limits, clock=clock, on_change=observer.waiting)
            for modality in MODALITIES
        }
        self._caches = {
            "image": EmbeddingCache(cache_bytes.image, observer.of("image")),
            "text": EmbeddingCache(cache_bytes.text, observer.of("text")),
        }
        self._admitted: dict[int, _Admitted] = {}  # by reservation

    async def admit(self, reservation: int, request: AdmissionRequest) -> None:
        """Takes room, at once or when there is enough; see `InferenceBackend`."""
        turn = self.request_room(reservation, request)
        if turn is not None:
            try:
                await turn
            except asyncio.CancelledError:
                self.release(reservation, is_served=False)
                raise

    def request_room(self, reservation: int, request: AdmissionRequest) -> asyncio.Future[None] | None:
        """Takes room at once, or waits for it: then returns a future that is done when there is room.

        To stop waiting, `release` the reservation.

        Raises:
            QueueFull: There is no room, or the caller already has its share.
            WouldMissDeadline: There is room, but the answer would come too late.
        """
        controller = self._admission[request.modality]
        if request.waits_for_room:
            room = controller.ask(request.items, request.size_bytes, request.flow)
        else:
            seconds_left = (
                None if request.deadline is None else request.deadline - asyncio.get_running_loop().time()
            )
            room = controller.reserve(request.items, request.size_bytes, request.flow, seconds_left)
        self._admitted[reservation] = _Admitted(request, room)
        return room.turn

    def has_cache(self, modality: str) -> bool:
        """Returns whether `look_up` can find anything."""
        return self._caches[modality].is_enabled

    def look_up(self, modality: str, key: bytes) -> NDArray[np.float32] | None:
        """Returns a cached embedding. Thread-safe."""
        return self._caches[modality].get(key)

    async def embed(self, reservation: int, items: PreparedItems) -> Embedded:
        """Embeds cache misses and stores the results; see `InferenceBackend`."""
        answer: asyncio.Future[Embedded] = asyncio.get_running_loop().create_future()
        self.submit(reservation, items, partial(_settle, answer))
        try:
            return await answer
        finally:
            self.release(reservation, is_served=False)  # if cancelled; otherwise it has ended
            del answer  # its error has this frame in the traceback: a cycle

    def submit(self, reservation: int, items: PreparedItems, on_done: Callable[[Answer], object]) -> None:
        """Embeds the items of a reservation that has room, and ends it with their answer.

        Args:
            reservation: Until `on_done` is called, `release` withdraws the items.
            items: Of the reservation's modality, no more than it has room for.
            on_done: Called once on the event loop's thread, perhaps before this returns, with the error of
                the first item to fail or with the embeddings of all. See `InferenceBackend.embed` for the
                errors. Never called if the reservation is released before.
        """
        admitted = self._admitted[reservation]
        cached: Sequence[bytes | None] = ()
        if admitted.call.modality == "text":  # `look_up` has not found the images
            cached = self._caches["text"].get_all(items.keys)
        if any(cached):
            is_missing = [each is None for each in cached]
            keys, sizes = list(compress(items.keys, is_missing)), list(compress(items.sizes, is_missing))
            missing = PreparedItems.of_texts(keys, sizes)
        else:
            cached, missing = (), items
        on_embedded = partial(self._end, reservation, missing.keys, cached, on_done)
        if missing.keys:
            admitted.request = self._run(reservation, admitted, missing, on_embedded)
        else:
            on_embedded(_NOTHING_EMBEDDED)

    def release(self, reservation: int, *, is_served: bool = True) -> None:
        """Frees what is left of a reservation and withdraws its items; see `InferenceBackend`."""
        admitted = self._admitted.pop(reservation, None)
        if admitted is None:
            return
        if admitted.request is not None:
            self._batcher.withdraw(admitted.request)
        admitted.room.close(served=is_served)

    async def check_not_crowded(self, flow: Flow) -> None:
        """Returns if texts of a flow that waits for room would soon get it; see `InferenceBackend`."""
        self._admission["text"].check_not_crowded(flow)

    def _run(
        self,
        reservation: int,
        admitted: _Admitted,
        items: PreparedItems,
        on_embedded: Callable[[Answer], object],
    ) -> Request:
        call = admitted.call
        return self._batcher.submit(
            call.modality,
            items,
            on_embedded,
            deadline=call.deadline,
            flow=call.flow,
            room=admitted.room,
            reservation=reservation if call.is_sampled else 0,
        )

    def _end(
        self,
        reservation: int,
        keys: Sequence[bytes],
        cached: Sequence[bytes | None],
        on_done: Callable[[Answer], object],
        answer: Answer,
    ) -> None:
        """Ends a reservation with its answer; caches what is new, and adds what was cached."""
        admitted = self._admitted.pop(reservation)
        if isinstance(answer, ServingError):
            admitted.room.close(served=is_served(answer))
        else:
            admitted.room.close()
            if keys:
                self._caches[admitted.call.modality].put_all(keys, answer.embeddings)
            if cached:
                answer = _with_cached(answer, cached)
        on_done(answer)


_NOTHING_EMBEDDED = Embedded(np.empty((0, 0), np.float32), 0.0, 0.0, 0, 0, frozenset())


def _with_cached(embedded: Embedded, cached: Sequence[bytes | None]) -> Embedded:
    """Adds embeddings from the cache to the others, which come where it has None."""
    hits = [each for each in cached if each is not None]
    embeddings = np.frombuffer(b"".join(hits), np.float32).reshape(len(hits), -1)
    if len(hits) < len(cached):
        is_cached = np.array([each is not None for each in cached])
        merged = np.empty((len(cached), embeddings.shape[1]), np.float32)
        merged[is_cached], merged[~is_cached] = embeddings, embedded.embeddings
        embeddings = merged
    return embedded._replace(embeddings=embeddings, cached_items=len(hits))


def _settle(future: asyncio.Future[Embedded], answer: Answer) -> None:
    if future.done():  # cancelled; its task is about to run and will release the reservation
        return
    if isinstance(answer, ServingError):
        future.set_exception(answer)
    else:
        future.set_result(answer)
