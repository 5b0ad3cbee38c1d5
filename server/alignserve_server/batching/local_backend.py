"""The in-process backend: admission, caches and queues of all callers, called directly."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.admission import AdmissionController, QueueLimits, Reservation
from alignserve_server.batching.backend import AdmissionRequest, PreparedItem
from alignserve_server.batching.batcher import Batcher, Item
from alignserve_server.batching.embedding_cache import EmbeddingCache
from alignserve_server.batching.fair_queue import Flow
from alignserve_server.batching.observer import BatchObserver
from alignserve_server.batching.queue import Embedded
from alignserve_server.modality import MODALITIES
from alignserve_server.model.encoder import ModelInfo, TokenizedText


@dataclass(frozen=True, slots=True)
class CacheBytes:
    """The size of each modality's embedding cache, in bytes."""

    image: int
    text: int


_Admitted: TypeAlias = tuple[AdmissionRequest, Reservation]  # a request and the room reserved for it


class LocalBackend:
    """An `InferenceBackend` whose `batcher` runs in this process."""

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
        controller = self._admission[request.modality]
        if request.waits_for_room:
            room = await controller.wait(request.items, request.size_bytes, request.flow)
        else:
            seconds_left = (
                None if request.deadline is None else request.deadline - asyncio.get_running_loop().time()
            )
            room = controller.reserve(request.items, request.size_bytes, request.flow, seconds_left)
        self._admitted[reservation] = request, room

    def look_up(self, modality: str, key: bytes) -> NDArray[np.float32] | None:
        """Returns a cached embedding. Thread-safe."""
        return self._caches[modality].get(key)

    async def embed(self, reservation: int, items: Sequence[PreparedItem]) -> list[Embedded]:
        """Embeds cache misses and stores the results; see `InferenceBackend`."""
        request, room = self._admitted[reservation]
        cache = self._caches[request.modality]
        if request.modality == "image":  # `look_up` has not found them
            cached: list[NDArray[np.float32] | None] = []
            missing = [Item(pixels, 1, size, key or b"", room.slot(size)) for pixels, size, key in items]
        else:
            keys = [array("q", item.payload).tobytes() for item in items]
            cached = cache.get_all(keys)
            missing = [
                Item(TokenizedText(tuple(token_ids)), len(token_ids), size, key, room.slot(size))
                for (token_ids, size, _), key, embedding in zip(items, keys, cached, strict=True)
                if embedding is None
            ]
        embedded = await self._run(request, reservation, missing) if missing else []
        cache.put_all([(item.key, result.embedding) for item, result in zip(missing, embedded, strict=True)])
        if len(embedded) == len(items):
            return embedded
        fresh = iter(embedded)
        return [next(fresh) if each is None else Embedded.from_cache(each) for each in cached]

    def release(self, reservation: int, *, is_served: bool = True) -> None:
        """Frees what is left of a reservation; see `InferenceBackend`."""
        admitted = self._admitted.pop(reservation, None)
        if admitted is not None:
            admitted[1].close(served=is_served)

    async def check_not_crowded(self, flow: Flow) -> None:
        """Returns if texts of a flow that waits for room would soon get it; see `InferenceBackend`."""
        self._admission["text"].check_not_crowded(flow)

    async def _run(
        self, request: AdmissionRequest, reservation: int, items: Sequence[Item]
    ) -> list[Embedded]:
        reported = reservation if request.is_sampled else 0
        futures = self._batcher.submit(request.modality, items, request.deadline, request.flow, reported)
        try:
            if len(futures) == 1:
                return [await futures[0]]  # without what `gather` puts around it
            return await asyncio.gather(*futures)
        finally:
            # Removes items that still wait from the queue; no effect on the others. A future's error has this
            # frame in its traceback: keeping the futures would make a cycle.
            while futures:
                futures.pop().cancel()
