"""A device serves several fronts, whatever they do, and reuses their memory only when nothing reads it."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
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

    def encode_images(self, batch: Sequence[PixelValues]) -> Embeddings:
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
    while _is_shared(pixels := front.new_pixels(_SHAPE)):
        taken.append(pixels)
    return len(taken)


async def _all_free(front: FrontBackend) -> None:
    """Returns once all places are free: a lane drops its batch a little after the answer."""
    while _free_places(front) < 10:
        await asyncio.sleep(0.001)


def _descriptors() -> int:
    """Returns how many files this process has open, each memory that it has mapped included."""
    gc.collect()  # what earlier tests have left
    return len(list(Path("/proc/self/fd").iterdir()))


def _mode(path: str) -> int:
    """Returns the permissions of a file; 0 if there is none."""
    return Path(path).stat().st_mode & 0o777 if Path(path).exists() else 0


def _is_shared(pixels: PixelValues) -> bool:
    return pixels.base is not None


async def _leave_running(fronts: Fronts, front: FrontBackend, value: int) -> None:
    """Cancels a call whose image is in the model."""
    fronts.encoder.hold()
    call = asyncio.create_task(fronts.images(front, [fronts.image(front, value)]))
    await fronts.encoder.begun()
    call.cancel()
    await asyncio.wait([call])
    await _read(front)


async def test_a_place_is_not_reused_while_a_batch_reads_it(fronts: Fronts) -> None:
    """The caller has left, but its image is in the model."""
    async with fronts.front() as front:
        await _leave_running(fronts, front, 1)

        free_while_running = _free_places(front)
        others = [fronts.image(front, 9) for _ in range(12)]
        fronts.encoder.resume()
        after = await fronts.images(front, [fronts.image(front, 2)])
        await _read(front)

        assert fronts.encoder.seen[0] == bytes([1]) * 48
        np.testing.assert_array_equal(after.embeddings[0], fronts.expected(2))
        assert free_while_running == 9
        del others
        await _all_free(front)


async def test_a_place_is_not_reused_while_another_front_needs_its_image(fronts: Fronts) -> None:
    """Equal images of several fronts are embedded once, from the place of the first, which has left."""
    async with fronts.front() as first, fronts.front() as second:
        await _leave_running(fronts, first, 1)
        leaving = asyncio.create_task(fronts.images(first, [fronts.image(first, 2)]))
        await _read(first)
        shared = asyncio.create_task(fronts.images(second, [fronts.image(second, 2)]))
        await _read(second)
        leaving.cancel()
        await asyncio.wait([leaving])
        await _read(first)

        others = [fronts.image(first, 9) for _ in range(12)]
        fronts.encoder.resume()
        answer = await shared

        np.testing.assert_array_equal(answer.embeddings[0], fronts.expected(2))
        assert fronts.encoder.seen == [bytes([1]) * 48, bytes([2]) * 48]
        await _read(first)
        del others
        await _all_free(first)
        await _all_free(second)


async def test_the_image_of_a_lost_front_is_still_embedded_for_another(fronts: Fronts) -> None:
    async with fronts.front() as second:
        async with fronts.front() as first:
            await _leave_running(fronts, first, 1)
            lost = asyncio.create_task(fronts.images(first, [fronts.image(first, 2)]))
            await _read(first)
            shared = asyncio.create_task(fronts.images(second, [fronts.image(second, 2)]))
            await _read(second)

        with pytest.raises(DeviceGone):
            await lost
        await _read(second)
        fronts.encoder.resume()

        np.testing.assert_array_equal((await shared).embeddings[0], fronts.expected(2))


async def test_places_of_expired_and_failed_images_are_free_again(fronts: Fronts) -> None:
    fronts.encoder.failing.add(bytes([3]) * 48)
    async with fronts.front() as front:
        await _leave_running(fronts, front, 1)
        with pytest.raises(ExpiredInQueue):
            await fronts.images(front, [fronts.image(front, 2)] * 2, asyncio.get_running_loop().time())
        fronts.encoder.resume()

        with pytest.raises(InferenceFailed), capture_logs():
            await fronts.images(front, [fronts.image(front, value) for value in (3, 4)])

        await fronts.images(front, [fronts.image(front, 5)])
        await _read(front)
        await _all_free(front)


async def test_images_that_are_never_embedded_give_their_places_back(fronts: Fronts) -> None:
    """Another image of their call may be invalid, or the caller has left."""
    async with fronts.front() as front:
        decoded = [fronts.image(front, value) for value in range(12)]
        assert [_is_shared(each) for each in decoded] == [True] * 10 + [False] * 2

        decoded.clear()

        await _all_free(front)


@pytest.mark.parametrize("is_copied", [False, True], ids=["decoded in place", "copied"])
async def test_more_requests_than_places_are_all_answered(fronts: Fronts, is_copied: bool) -> None:
    """They wait for places in turn."""
    async with fronts.front() as front:
        fronts.encoder.hold()
        calls = [
            asyncio.create_task(
                fronts.images(
                    front, [fronts.image(front, value, is_copied=is_copied), fronts.image(front, value + 1)]
                )
            )
            for value in range(0, 100, 2)
        ]
        texts = [asyncio.create_task(fronts.texts(front, f"text {each}", "more")) for each in range(20)]
        await _read(front)
        fronts.encoder.resume()

        for number, call in enumerate(calls):
            expected = [fronts.expected(2 * number), fronts.expected(2 * number + 1)]
            np.testing.assert_array_equal((await call).embeddings, expected)
        for number, text in enumerate(texts):
            expected = [fronts.encoder.embedding_of(each) for each in (f"text {number}", "more")]
            np.testing.assert_array_equal((await text).embeddings, expected)
        await _read(front)
        await _all_free(front)


async def test_a_call_cancelled_while_it_waits_for_places_leaves_nothing(fronts: Fronts) -> None:
    async with fronts.front() as front:
        fronts.encoder.hold()
        images = [fronts.image(front, value, is_copied=True) for value in range(8)]
        running = asyncio.create_task(fronts.images(front, images[:4]))
        waiting = asyncio.create_task(fronts.images(front, images[4:]))
        await fronts.encoder.begun()
        await _read(front)

        waiting.cancel()
        await asyncio.wait([waiting])
        fronts.encoder.resume()
        await running

        assert len((await fronts.images(front, images[4:])).embeddings) == 4
        assert len(fronts.encoder.batches) == 2


async def test_a_call_that_waits_for_places_fails_with_the_device(fronts: Fronts) -> None:
    async with fronts.front() as front:
        fronts.encoder.hold()
        images = [fronts.image(front, value, is_copied=True) for value in range(8)]
        calls = [asyncio.create_task(fronts.images(front, part)) for part in (images[:4], images[4:])]
        await fronts.encoder.begun()

        await fronts.device.stop()

        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in errors] == [DeviceGone] * 2


async def test_a_request_larger_than_all_places_is_refused(fronts: Fronts) -> None:
    """It is refused before anything is decoded, once the size of images is known."""
    async with fronts.front() as front:
        pixels = fronts.image(front, 1)

        with pytest.raises(BatchTooLarge, match="5 images, limit 4"):
            await fronts.images(front, [pixels] * 5)
        with pytest.raises(BatchTooLarge, match="limit"):
            await fronts.texts(front, *["a"] * 1000)

        assert len((await fronts.images(front, [pixels] * 4)).embeddings) == 4


async def test_an_image_that_comes_many_times_has_room_for_its_answer(
    fronts: Fronts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer has more rows than the one place of the pixels can hold."""
    monkeypatch.setattr("alignserve_server.fronts.front_memory.whole_pages", lambda size: -(-size // 64) * 64)
    async with fronts.front() as front:  # two rows in a place
        answer = await fronts.images(front, [fronts.image(front, 7)] * 5)

    np.testing.assert_array_equal(answer.embeddings, [fronts.expected(7)] * 5)


async def test_thousands_of_requests_need_no_more_memory_or_descriptors(fronts: Fronts) -> None:
    async with fronts.front() as front:
        descriptors = _descriptors()
        for start in range(0, 2000, 8):
            calls = [fronts.images(front, [fronts.image(front, (start + each) % 256)]) for each in range(4)]
            calls += [fronts.texts(front, f"{start} {each}") for each in range(4)]
            await asyncio.gather(*calls)
        await _read(front)

        assert _descriptors() == descriptors
        await _all_free(front)
        for held in (front._admitted, front._pending, front._leases, front._checks, front._look_ups):
            assert not held


async def test_the_state_of_the_device_reaches_all_fronts(fronts: Fronts) -> None:
    """A front that connects later learns the latest one."""
    heard: list[str] = []
    first = await FrontBackend.connect(fronts.path, print, heard.append)
    fronts.device.tell("stalled")
    await _read(first)
    second = await FrontBackend.connect(fronts.path, print, lambda state: heard.append(f"second: {state}"))
    await _read(second)

    assert heard == ["serving", "stalled", "second: stalled"]
    await first.close()
    await second.close()
    await fronts.device.fronts_gone()


async def test_only_this_user_may_connect(fronts: Fronts) -> None:
    assert _mode(fronts.path) == 0o600


async def test_a_device_replaces_a_socket_that_was_left(fronts: Fronts, tmp_path: Path) -> None:
    """A killed device cannot remove it."""
    left = tmp_path / "left"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(left))
    device, _ = new_device(fronts.encoder)

    await device.start(str(left))
    await device.stop()

    assert not _mode(str(left))


async def test_a_device_keeps_a_file_that_is_no_socket(fronts: Fronts, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    device, _ = new_device(fronts.encoder)

    with pytest.raises(OSError, match="in use"):
        await device.start(str(tmp_path / "file"))
    await device.stop()

    assert _mode(str(tmp_path / "file"))


def _reservation(number: int, modality: str = "text") -> bytes:
    request = AdmissionRequest(modality, 2, 2, ANONYMOUS, waits_for_room=True)
    return messages.encode_admit(number, request)


def _texts(number: int, *places: int, items: int = 2, items_per_place: int = 2) -> bytes:
    return messages.encode_texts(messages.Texts(number, items, items_per_place, list(places)))


def _images(number: int, places: list[int], answer_places: list[int], side: int = 4) -> bytes:
    return messages.encode_images(
        messages.Images(number, side, side, places, [1] * len(places), [b"k"] * len(places), 1, answer_places)
    )


@pytest.mark.parametrize(
    "sent",
    [
        [messages.message(77, b"unknown")],
        [messages.message(messages.ADMIT, b"short")],
        [_reservation(1), _reservation(1)],
        [_reservation(2**48)],
        [_texts(5, 0)],
        [_reservation(1), _texts(1, 10 * _MEMORY_BYTES)],
        [_reservation(1), _texts(1, 2**63)],
        [_reservation(1), _texts(1, 0, 0)],
        [_reservation(1), _texts(1, 0, items_per_place=0)],
        [_reservation(1), _texts(1, 0, items=1000, items_per_place=1000)],
        [_reservation(1), _images(1, [0], [0])],
        [_reservation(1, modality="image"), _images(1, [_MEMORY_BYTES - 47], [0])],
        [_reservation(1, modality="image"), _images(1, [0], [0], side=2**16 - 1)],
        [_reservation(1, modality="image"), _images(1, [0, 0], [])],
        [_reservation(1, modality="image"), _images(1, [0, 0, 0], [0, 0, 0])],
        [_reservation(1, modality="image"), _images(1, [0], [_MEMORY_BYTES - 4])],
        [_reservation(1), b"\xff\xff\xff\xff\x00"],
    ],
    ids=[
        "unknown kind",
        "truncated",
        "reservation twice",
        "reservation too large",
        "nothing admitted",
        "texts beyond the memory",
        "texts far beyond the memory",
        "more places than texts",
        "no texts in a place",
        "more texts than admitted",
        "other modality",
        "pixels beyond the memory",
        "impossible pixels",
        "no room for the answer",
        "more images than admitted",
        "answer beyond the memory",
        "impossible length",
    ],
)
async def test_a_malformed_message_ends_only_its_front(fronts: Fronts, sent: list[bytes]) -> None:
    """Its reservations are released, and the other front is still served."""
    async with fronts.front() as front:
        with capture_logs() as lines:
            await asyncio.to_thread(_be_hostile, fronts.path, b"".join(sent))

        assert [line["event"] for line in lines] == ["connection_malformed"]
        answer = await fronts.texts(front, "served")
        np.testing.assert_array_equal(answer.embeddings[0], fronts.encoder.embedding_of("served"))
    await fronts.device.fronts_gone()


def _be_hostile(path: str, data: bytes) -> None:
    """Connects as a front, sends some bytes, and returns when the device closes the connection."""
    descriptor, _ = create(_MEMORY_BYTES)
    with socket.socket(socket.AF_UNIX) as connected:
        connected.connect(path)
        socket.send_fds(connected, [messages.encode_hello(_MEMORY_BYTES)], [descriptor])
        os.close(descriptor)
        connected.sendall(data)
        while connected.recv(1 << 16):
            pass


@pytest.mark.parametrize(
    ("data", "descriptors"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 0),
        (messages.encode_hello(_MEMORY_BYTES), 0),
        (messages.encode_hello(_MEMORY_BYTES + _PAGE), 1),
        (messages.encode_hello(_MEMORY_BYTES)[:-1], 1),
        (b"", 0),
    ],
    ids=["another protocol", "no memory", "memory of another size", "truncated", "nothing"],
)
async def test_whoever_is_no_front_is_refused(fronts: Fronts, data: bytes, descriptors: int) -> None:
    """Nothing is left of the connection."""

    def connect() -> None:
        descriptor, _ = create(_MEMORY_BYTES)
        with socket.socket(socket.AF_UNIX) as connected:
            connected.connect(fronts.path)
            if data:
                socket.send_fds(connected, [data], [descriptor] * descriptors)
            connected.shutdown(socket.SHUT_WR)
            os.close(descriptor)
            with suppress(ConnectionResetError):  # not all that was sent was read
                assert connected.recv(100) == b""

    before = _descriptors()
    with capture_logs() as lines:
        await asyncio.to_thread(connect)

    assert [line["event"] for line in lines] == ["front_refused"]
    assert _descriptors() == before


async def test_a_lost_connection_is_forgotten_without_garbage_collection(fronts: Fronts) -> None:
    """A front reconnects, and must not keep the memory of each device that it has lost."""
    gc.collect()
    gc.disable()
    try:
        front = await FrontBackend.connect(fronts.path, print, print)
        await fronts.images(front, [fronts.image(front, 1)])
        await fronts.texts(front, "a text")
        await front.close()
        await fronts.device.fronts_gone()
        memory = weakref.ref(front._memory)
        del front
        await settle()

        assert memory() is None
    finally:
        gc.enable()


async def test_a_front_is_told_when_it_is_refused(tmp_path: Path) -> None:
    """Something else listens on the path."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        connecting = asyncio.create_task(FrontBackend.connect(str(tmp_path / "socket"), print, print))
        await settle()
        listener.accept()[0].close()

        with pytest.raises(ConnectionError, match="refused"):
            await connecting
