"""A device serves several fronts, whatever they do, and reuses their memory only when nothing reads it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from alignserve_server.batching.admission import QueueLimits
from alignserve_server.batching.backend import AdmissionRequest, PreparedItems
from alignserve_server.batching.fair_queue import ANONYMOUS
from alignserve_server.batching.local_backend import CacheBytes
from alignserve_server.batching.request import Embedded
from alignserve_server.errors import BatchTooLarge, ExpiredInQueue, InferenceFailed
from alignserve_server.fronts import messages
from alignserve_server.fronts.device import DeviceServer
from alignserve_server.fronts.front import DeviceGone, FrontBackend
from alignserve_server.fronts.memory import create
from alignserve_server.model.encoder import Embeddings, PixelValues
from structlog.testing import capture_logs

from tests.unit.fakes import WatchedEncoder, settle
from tests.unit.fronts.processes import new_device

_PAGE = 4096
_MEMORY_BYTES = 16 * _PAGE  # 2 places for texts, 10 to decode images into and 4 for copies of images
_SHAPE = (4, 4, 3)


class LateEncoder(WatchedEncoder):
    """Reads images only after the gate, so that it sees if they change while a batch runs."""

    def encode_images(self, batch: list[PixelValues]) -> Embeddings:
        self._begun.release()
        self.gate.wait()
        return self._forward("image", [pixels.tobytes() for pixels in batch])


class Fronts:
    """A device in this process, and fronts that connect to it."""

    def __init__(self, device: DeviceServer, encoder: LateEncoder, path: str) -> None:
        self.device = device
        self.encoder = encoder
        self.path = path
        self._reservation = 0

    @asynccontextmanager
    async def front(self, memory_bytes: int = _MEMORY_BYTES) -> AsyncIterator[FrontBackend]:
        """Connects a front, and disconnects it at the end."""
        states: list[str] = []
        front = await FrontBackend.connect(
            self.path, lambda _: None, states.append, memory_bytes=memory_bytes
        )
        yield front
        await front.close()

    def image(self, front: FrontBackend, value: int, *, is_copied: bool = False) -> PixelValues:
        pixels = np.empty(_SHAPE, np.uint8) if is_copied else front.new_pixels(_SHAPE)
        pixels[:] = value
        return pixels

    async def images(
        self, front: FrontBackend, pixels: list[PixelValues], deadline: float | None = None
    ) -> Embedded:
        """Embeds images, each with its first value as its key."""
        items = PreparedItems(pixels, [1] * len(pixels), [b"%d" % each[0, 0, 0] for each in pixels])
        return await self._embed(front, "image", items, deadline)

    async def texts(self, front: FrontBackend, *texts: str) -> Embedded:
        """Embeds texts."""
        tokens = [self.encoder.key(text) for text in texts]
        return await self._embed(front, "text", PreparedItems.of_texts(tokens, [1] * len(texts)), None)

    async def _embed(
        self, front: FrontBackend, modality: str, items: PreparedItems, deadline: float | None
    ) -> Embedded:
        self._reservation += 1
        reservation = self._reservation
        number = len(items.payloads)
        request = AdmissionRequest(modality, number, number, ANONYMOUS, deadline, waits_for_room=True)
        await front.admit(reservation, request)
        try:
            return await front.embed(reservation, items)
        finally:
            front.release(reservation)

    def expected(self, value: int) -> Embeddings:
        """Returns the embedding of an image."""
        return self.encoder._embed([bytes([value]) * 48])[0]


@pytest.fixture
async def fronts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fronts]:
    monkeypatch.setattr("alignserve_server.fronts.front_memory._TEXT_PLACE_BYTES", _PAGE)
    encoder = LateEncoder()
    device, batcher = new_device(
        encoder, limits=QueueLimits(1000, 1_000_000), cache_bytes=CacheBytes(0, 0), max_batch_size=4
    )
    path = str(tmp_path / "socket")
    await device.start(path)
    yield Fronts(device, encoder, path)
    encoder.resume()
    await device.stop()
    assert await batcher.stop(10.0)


async def _read(front: FrontBackend) -> None:
    """Returns once the device has read all earlier messages and the front all answers."""
    await settle()
    await front.check_not_crowded(ANONYMOUS)


def _free_places(front: FrontBackend) -> int:
    """Takes all places that images can be decoded into, and returns how many there were."""
    taken = []
    while front._memory._images is None or (pixels := front.new_pixels(_SHAPE)).base is not None:
        taken.append(pixels)
    return len(taken)


async def test_a_place_is_not_reused_while_a_batch_reads_it(fronts: Fronts) -> None:
    """The caller has left, but its image is in the model."""
    async with fronts.front() as front:
        fronts.encoder.hold()
        pixels = fronts.image(front, 1)
        leaving = asyncio.create_task(fronts.images(front, [pixels]))
        await fronts.encoder.begun()
        leaving.cancel()
        await asyncio.wait([leaving])
        del pixels
        await _read(front)

        free_while_running = _free_places(front)
        others = [fronts.image(front, 9) for _ in range(12)]
        fronts.encoder.resume()
        await fronts.images(front, [fronts.image(front, 2)])
        await _read(front)
        del others

        assert free_while_running == 9
        assert _free_places(front) == 10
        assert fronts.encoder.seen[0] == bytes([1]) * 48
