"""An engine works the same with a device in another process as with a local one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from alignserve_server.batching.call import CallContext
from alignserve_server.batching.embedder import TextEmbeddings
from alignserve_server.batching.engine import Engine
from alignserve_server.batching.fair_queue import ANONYMOUS
from alignserve_server.batching.preprocessor import Preprocessor
from alignserve_server.errors import ExpiredInQueue, QueueFull
from alignserve_server.fronts.front import DeviceGone, FrontBackend
from alignserve_server.model.encoder import ImageInput, PixelValues
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.model.zero_shot import LabelSet, ScoredLabel
from alignserve_server.observability.batch_observer import MetricsObserver
from alignserve_server.observability.tracing import CallTrace, Tracing
from structlog.testing import capture_logs

from tests.processes import socket_folder
from tests.unit.fakes import settle
from tests.unit.fronts.processes import (
    GREETING,
    LIMITS,
    OPEN_ITEMS,
    DeviceProcess,
    device_process,
    front_process,
)

CALL, STREAM_CALL = CallContext(), CallContext(waits_for_room=True)


class SharingReader(FakeEncoder):
    """Decodes into the memory that a front shares with its device."""

    def __init__(self, backend: FrontBackend) -> None:
        super().__init__()
        self._new_pixels = backend.new_pixels

    def preprocess_image(self, image: ImageInput) -> PixelValues:
        decoded = super().preprocess_image(image)
        pixels = self._new_pixels(decoded.shape)
        pixels[:] = decoded
        return pixels


@pytest.fixture(scope="module")
def device() -> Iterator[DeviceProcess]:
    """The process with the encoder, the queues and the caches."""
    with socket_folder() as folder, device_process(str(folder / "socket")) as process:
        yield process


@pytest.fixture
def tracing() -> Tracing:
    """Samples every call for the access log."""
    return Tracing(None, 1.0)


@pytest.fixture
async def backend(device: DeviceProcess, tracing: Tracing) -> AsyncIterator[FrontBackend]:
    backend = await FrontBackend.connect(device.path, tracing.note_batch, lambda _: None)
    yield backend
    await device.resume()
    await backend.close()


@pytest.fixture
async def engine(backend: FrontBackend, observer: MetricsObserver) -> AsyncIterator[Engine]:
    with ThreadPoolExecutor(1) as pool:
        preprocessor = Preprocessor(SharingReader(backend), pool, observer, decode_threads=1)
        engine = Engine(preprocessor, backend, observer, LIMITS, label_cache_size=100)
        yield engine
        engine.close()


async def _let_device_read(backend: FrontBackend) -> None:
    """Returns once the device has started to answer all earlier requests."""
    await settle()
    await asyncio.to_thread(backend.look_up, "image", b"none")


async def _occupy(engine: Engine, device: DeviceProcess, name: str) -> asyncio.Task[object]:
    """Keeps the device's lane busy with a text until the test resumes the encoder."""
    await device.hold()
    task: asyncio.Task[object] = asyncio.create_task(engine.embed_texts([name], CALL))
    await device.begun()
    return task


async def _admitted(engine: Engine, texts: list[str], call: CallContext) -> asyncio.Task[TextEmbeddings]:
    """Starts embedding texts and returns once they are admitted."""
    has_room = asyncio.Event()
    call = replace(call, on_admitted=has_room.set)
    task = asyncio.create_task(engine.embed_texts(texts, call))
    await has_room.wait()
    return task


async def test_each_image_and_text_gets_its_own_embedding(engine: Engine) -> None:
    """Each embedding is at its input's position and equals the encoder's."""
    images = await engine.embed_images([b"one", b"two", b"one"], CALL)
    texts = await engine.embed_texts(["a cat", "a dog"], CALL)

    encoder = FakeEncoder()
    expected = [encoder.embedding_of(image) for image in (b"one", b"two", b"one")]
    np.testing.assert_array_equal(images.embeddings, expected)
    np.testing.assert_array_equal(texts.embeddings, [encoder.embedding_of(t) for t in ("a cat", "a dog")])
    assert engine.info.embedding_dimension == images.embeddings.shape[1]


async def test_the_device_greets_the_front(backend: FrontBackend) -> None:
    """The front learns what it needs to prepare inputs."""
    assert (backend.info, backend.greeting) == (FakeEncoder().info, GREETING)


async def test_a_later_call_is_served_from_the_cache(engine: Engine) -> None:
    """The caches are on the device: cached images are not decoded, cached texts do not run."""
    found = []
    for _ in range(2):
        images = await engine.embed_images([b"again"], CALL)
        texts = await engine.embed_texts(["again", "and again"], CALL)
        found.append((images.timings.cached_item_count, texts.timings.cached_item_count))

    assert found == [(0, 0), (1, 2)]


async def test_an_image_is_classified(engine: Engine) -> None:
    """Labels are scored both when they are new and from the cache."""
    found: list[list[ScoredLabel]] = []
    labels = LabelSet.of(["a cat", "a dog"], ["{label}", "a photo of {label}"])

    counts = [
        (await engine.classify([b"%d" % i], labels, 0, CALL, found.append)).cached_label_count
        for i in range(2)
    ]

    assert counts == [0, 2]
    assert [{label.label_index for label in of_image} for of_image in found] == [{0, 1}, {0, 1}]


async def test_a_call_without_room_is_refused(engine: Engine, device: DeviceProcess) -> None:
    """The refusal has the device's message and retry delay."""
    plug = await _occupy(engine, device, "full")
    waiting = await _admitted(engine, [f"full {i}" for i in range(OPEN_ITEMS)], CALL)

    with pytest.raises(QueueFull, match=f"{OPEN_ITEMS} text items") as refused:
        await engine.embed_texts(["one too many"], CALL)

    assert refused.value.retry_delay_seconds
    await device.resume()
    await asyncio.gather(plug, waiting)


async def test_label_prompts_of_a_crowded_flow_are_refused(
    engine: Engine, backend: FrontBackend, device: DeviceProcess
) -> None:
    """They would wait for room as other calls of the flow already do."""
    plug = await _occupy(engine, device, "crowded")
    holding = await _admitted(engine, [f"crowded {i}" for i in range(OPEN_ITEMS)], STREAM_CALL)
    waiting = asyncio.create_task(engine.embed_texts(["more"] * OPEN_ITEMS, STREAM_CALL))
    await _let_device_read(backend)

    with pytest.raises(QueueFull):
        await backend.check_not_crowded(ANONYMOUS)

    await device.resume()
    await asyncio.gather(plug, holding, waiting)
    await backend.check_not_crowded(ANONYMOUS)


async def test_a_call_expires_in_the_queue(engine: Engine, device: DeviceProcess) -> None:
    """A deadline means the same moment in both processes."""
    plug = await _occupy(engine, device, "late")
    deadline = asyncio.get_running_loop().time() + 0.1

    with pytest.raises(ExpiredInQueue):
        await engine.embed_texts(["too late"], CallContext(deadline, waits_for_room=True))

    await device.resume()
    await plug


@pytest.mark.parametrize("call", [CALL, STREAM_CALL], ids=["unary", "stream"])
async def test_a_cancelled_call_frees_its_room(
    engine: Engine, backend: FrontBackend, device: DeviceProcess, call: CallContext
) -> None:
    """This holds whether it already had room or was still waiting for it."""
    plug = await _occupy(engine, device, f"left {call.waits_for_room}")
    holding = await _admitted(engine, ["left"] * OPEN_ITEMS, call)
    waiting = asyncio.create_task(engine.embed_texts(["waits"] * OPEN_ITEMS, STREAM_CALL))
    await _let_device_read(backend)

    waiting.cancel()
    holding.cancel()
    await asyncio.wait([waiting, holding])
    again = await _admitted(engine, ["again"] * OPEN_ITEMS, call)
    await device.resume()

    assert len((await again).embeddings) == OPEN_ITEMS
    await plug


async def test_a_killed_front_leaves_nothing_behind(
    engine: Engine, backend: FrontBackend, device: DeviceProcess
) -> None:
    """Its room goes to calls of other fronts; the device closes its connection and unmaps its memory."""
    descriptors, memories = device.descriptors(), device.mapped_memories()
    plug = await _occupy(engine, device, "killed")
    admitted = asyncio.Event()
    call = CallContext(waits_for_room=True, on_admitted=admitted.set)
    with front_process(device.path) as front:
        waiting = asyncio.create_task(engine.embed_texts(["w"] * OPEN_ITEMS, call))
        await _let_device_read(backend)
        was_admitted = admitted.is_set()
        had_memories = device.mapped_memories()

        front.kill()
        await admitted.wait()

    await device.resume()
    await asyncio.gather(plug, waiting)
    assert not was_admitted
    assert had_memories == memories + 1
    assert (device.descriptors(), device.mapped_memories()) == (descriptors, memories)


async def test_a_killed_front_leaves_a_running_batch_its_pixels(
    engine: Engine, device: DeviceProcess
) -> None:
    """The batch ends as usual, and other fronts are served after it."""
    await device.hold()
    with front_process(device.path) as front:
        await device.begun()  # with the front's images

        front.kill()

    await device.resume()
    texts = await engine.embed_texts(["after a killed front"], STREAM_CALL)
    assert len(texts.embeddings) == 1


async def test_a_sampled_call_is_linked_to_its_batch(engine: Engine, tracing: Tracing) -> None:
    """The device reports the batch under the reservation number before it answers."""
    trace = tracing.begin("service", "EmbedText", lambda: None)
    assert isinstance(trace, CallTrace)

    with capture_logs() as lines:
        await engine.embed_texts(["one text", "another one"], CallContext(trace=trace))
        trace.end("OK")

    (line,) = lines
    assert (line["batch_size"], line["items"]) == (2, 2)
    assert {"admission_seconds", "preprocess_seconds", "queue_seconds", "compute_seconds"} <= line.keys()


async def test_all_calls_fail_when_the_device_is_killed(tmp_path, observer: MetricsObserver) -> None:
    """Those in flight fail at once with an error that clients retry, and so do later ones."""
    with device_process(str(tmp_path / "socket")) as device, ThreadPoolExecutor(1) as pool:
        backend = await FrontBackend.connect(device.path, lambda _: None, lambda _: None)
        preprocessor = Preprocessor(SharingReader(backend), pool, observer, decode_threads=1)
        engine = Engine(preprocessor, backend, observer, LIMITS, label_cache_size=100)
        running = await _occupy(engine, device, "running")
        queued = await _admitted(engine, ["queued"] * OPEN_ITEMS, CALL)
        image = asyncio.create_task(engine.embed_images([b"image"], CALL))
        waiting = asyncio.create_task(engine.embed_texts(["waiting"] * OPEN_ITEMS, STREAM_CALL))
        await _let_device_read(backend)

        device.process.kill()
        errors = await asyncio.gather(running, queued, image, waiting, return_exceptions=True)
        await backend.closed

        assert [type(error) for error in errors] == [DeviceGone] * 4
        assert {error.code for error in errors if isinstance(error, DeviceGone)} == {"UNAVAILABLE"}
        with pytest.raises(DeviceGone) as refused:
            await engine.embed_texts(["later"], CALL)
        assert refused.value.is_retryable
        assert await asyncio.to_thread(backend.look_up, "image", b"key") is None
        with pytest.raises(OSError, match="refused"):
            await FrontBackend.connect(device.path, lambda _: None, lambda _: None)
        engine.close()
        await backend.close()
