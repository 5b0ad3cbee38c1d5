"""The images and texts of one call are embedded concurrently: all of them, or none."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from alignserve_server.batching.admission import QueueLimits
from alignserve_server.batching.batcher import Batcher
from alignserve_server.batching.call import FIELD_PATHS, CallContext
from alignserve_server.batching.engine import Engine
from alignserve_server.batching.joint import JointInputs
from alignserve_server.batching.local_backend import CacheBytes
from alignserve_server.batching.scheduler import BatchPolicy, Scheduler
from alignserve_server.errors import ImageUnreadable, InvalidArgument, QueueFull, TextEmpty
from alignserve_server.model.encoder import ImageInput, PixelArray, PixelValues
from alignserve_server.observability.batch_observer import MetricsObserver

from tests.unit.fakes import WatchedEncoder, local_engine, settle

MAX_ITEMS = 16
OPEN_ITEMS = 12  # three quarters: the most that unary calls may fill
CALL = CallContext(paths=FIELD_PATHS.of_pairs())
PIXELS = PixelArray(1, 2, b"rgbrgb")


class CountingDecoder(WatchedEncoder):
    """A `WatchedEncoder` that records each image that it decodes, once `may_decode` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.decoded: list[ImageInput] = []
        self.may_decode = threading.Event()
        self.may_decode.set()

    def preprocess_image(self, image: ImageInput) -> PixelValues:
        self.decoded.append(image)
        assert self.may_decode.wait(30.0)
        return super().preprocess_image(image)


@pytest.fixture
def encoder() -> CountingDecoder:
    return CountingDecoder()


@pytest.fixture
async def engine(encoder: CountingDecoder, observer: MetricsObserver) -> AsyncIterator[Engine]:
    """An engine with one lane, one decoding thread, and a cache for images."""
    scheduler = Scheduler({modality: BatchPolicy(8) for modality in ("image", "text")})
    batcher = Batcher(encoder, scheduler, observer, lanes=1)
    batcher.start()
    with ThreadPoolExecutor(1) as pool:
        engine = local_engine(
            encoder,
            batcher,
            pool,
            observer,
            decode_threads=1,
            limits=QueueLimits(MAX_ITEMS, 1 << 20),
            label_cache_size=10,
            cache_bytes=CacheBytes(1 << 20, 1 << 20),
        )
        yield engine
        encoder.may_decode.set()
        encoder.resume()
        assert await batcher.stop(30.0)
        engine.close()


def fields_of(error: InvalidArgument) -> list[str]:
    return [violation.field for violation in error.violations]


def pairs(*inputs: tuple[ImageInput, str]) -> JointInputs:
    return JointInputs.of_pairs([image for image, _ in inputs], [text for _, text in inputs])


async def fill_texts(engine: Engine, encoder: CountingDecoder) -> Awaitable[object]:
    """Fills the queue of texts while the device is busy."""
    encoder.hold()
    plug = asyncio.create_task(engine.embed_texts(["plug"], CALL))
    await encoder.begun()
    await settle()
    waiting = asyncio.create_task(engine.embed_texts([f"waiting {i}" for i in range(OPEN_ITEMS)], CALL))
    await settle()
    return asyncio.gather(plug, waiting)


async def test_both_are_embedded_in_order(engine, encoder):
    """Images, pixels and texts each get their own embedding, and the places restore the order."""
    inputs = JointInputs([PIXELS, b"b"], [(0, 1), (2, 0)], ["a", "c"], [(0, 0), (1, 0)])

    result = await engine.embed_jointly(inputs, CALL)

    expected = [encoder.embedding_of(each) for each in ("a", PIXELS, "c", b"b")]
    np.testing.assert_allclose(inputs.in_order(result), expected, atol=1e-6)
    assert len(result.tokenized) == 2
    assert result.timings.cached_item_count == 0


@pytest.mark.parametrize(
    "inputs",
    [JointInputs([b"a"], [(0, 0)], [], []), JointInputs([], [], ["a"], [(0, 0)])],
    ids=["images", "texts"],
)
async def test_a_call_may_have_only_one_modality(engine, encoder, inputs):
    """Composed queries need not mix images and texts."""
    expected = encoder.embedding_of(inputs.images[0] if inputs.images else "a")

    result = await engine.embed_jointly(inputs, CALL)

    np.testing.assert_allclose(inputs.in_order(result), [expected], atol=1e-6)


async def test_one_error_names_the_invalid_images_and_texts(engine, encoder):
    """They are in the order of the request, whichever was found first; nothing reaches the device."""
    bad_shape = PixelArray(2, 2, b"too short")
    inputs = pairs((b"fine", "fine"), (b"broken", "fine"), (bad_shape, " "), (b"fine too", ""))

    with pytest.raises(ImageUnreadable) as refused:
        await engine.embed_jointly(inputs, CALL)

    assert fields_of(refused.value) == [
        "pairs[1].image.content", "pairs[2].image.pixels.data", "pairs[2].text", "pairs[3].text",
    ]  # fmt: skip
    assert encoder.batches == []


async def test_an_invalid_text_waits_for_the_images_to_be_checked(engine, encoder):
    """Texts are checked first, but the error is complete."""
    encoder.may_decode.clear()
    call = asyncio.create_task(engine.embed_jointly(pairs((b"a", " "), (b"broken", "b")), CALL))
    await settle()
    was_answered_early = call.done()

    encoder.may_decode.set()

    with pytest.raises(TextEmpty) as refused:
        await call
    assert not was_answered_early
    assert fields_of(refused.value) == ["pairs[0].text", "pairs[1].image.content"]


async def test_invalid_images_hold_no_room_while_texts_wait_for_theirs(engine, encoder, metrics):
    """Two calls that each held the room that the other waits for would wait forever."""
    encoder.may_decode.clear()
    item = replace(CALL, waits_for_room=True)
    filling = await fill_texts(engine, encoder)
    call = asyncio.create_task(
        engine.embed_jointly(pairs(*[(b"broken %d" % i, "text") for i in range(8)]), item)
    )
    await settle()

    encoder.may_decode.set()

    while metrics.registry.get_sample_value("alignserve_items_in_flight", {"modality": "image"}):
        await asyncio.sleep(0)
    assert not call.done()
    encoder.resume()
    with pytest.raises(ImageUnreadable) as refused:
        await call
    assert len(fields_of(refused.value)) == 8
    await filling


async def test_texts_leave_the_queue_if_an_image_is_invalid(engine, encoder):
    """They were valid and queued by then."""
    encoder.hold()
    plug = asyncio.create_task(engine.embed_texts(["plug"], CALL))
    await encoder.begun()

    with pytest.raises(ImageUnreadable):
        await engine.embed_jointly(pairs((b"broken", "text")), CALL)
    await settle()
    encoder.resume()
    await plug

    assert encoder.seen == [encoder.key("plug")]


async def test_images_leave_if_there_is_no_room_for_texts(engine, encoder):
    """A refused side takes the other with it, and no room is lost."""
    filling = await fill_texts(engine, encoder)

    with pytest.raises(QueueFull):
        await engine.embed_jointly(pairs(*[(b"%d" % i, f"text {i}") for i in range(8)]), CALL)
    encoder.resume()
    await filling
    images = await engine.embed_images([b"%d" % i for i in range(MAX_ITEMS)], CALL)

    assert len(images.embeddings) == MAX_ITEMS


async def test_a_call_that_is_cancelled_leaves_both_queues(engine, encoder, metrics):
    """Neither images nor texts are embedded for a caller who has left."""
    encoder.hold()
    plug = asyncio.create_task(engine.embed_texts(["plug"], CALL))
    await encoder.begun()
    call = asyncio.create_task(engine.embed_jointly(pairs((b"a", "a")), CALL))
    while metrics.registry.get_sample_value("alignserve_queue_entries", {"modality": "image"}) != 1:
        await asyncio.sleep(0)

    call.cancel()
    await asyncio.wait({call})
    await settle()
    encoder.resume()
    await plug

    assert encoder.seen == [encoder.key("plug")]


async def test_a_stream_item_is_admitted_once_both_are(engine, encoder):
    """The stream is read on only when images and texts have room."""
    filling = await fill_texts(engine, encoder)
    admitted = asyncio.Event()
    item = replace(CALL, waits_for_room=True, on_admitted=admitted.set)
    inputs = pairs(*[(b"%d" % i, f"text {i}") for i in range(8)])
    call = asyncio.create_task(engine.embed_jointly(inputs, item))
    await settle()
    was_admitted_early = admitted.is_set()

    encoder.resume()
    await call

    assert not was_admitted_early
    assert admitted.is_set()
    await filling


async def test_an_image_with_several_texts_is_decoded_and_embedded_once(engine, encoder):
    """The same holds for pixels; each pair still gets its result."""
    inputs = pairs(*[(image, f"text {i}") for image in (b"one", PIXELS, b"two") for i in range(5)])

    result = await engine.embed_jointly(inputs, CALL)

    assert encoder.decoded == [b"one", PIXELS, b"two"]
    assert len(encoder.seen) == len(set(encoder.seen)) == 3 + 5
    expected = [encoder.embedding_of(image) for image in (b"one", PIXELS, b"two") for _ in range(5)]
    np.testing.assert_allclose(result.images, expected, atol=1e-6)


async def test_equal_invalid_images_are_all_named(engine):
    """Sharing the work does not hide where they are."""
    with pytest.raises(ImageUnreadable) as refused:
        await engine.embed_jointly(pairs((b"broken", "a"), (b"fine", "a"), (b"broken", "b")), CALL)

    assert fields_of(refused.value) == ["pairs[0].image.content", "pairs[2].image.content"]


async def test_pixels_and_files_of_the_same_bytes_are_different_images(engine, encoder):
    """Neither shares a decoding, a computation or a cached embedding with the other; nor do other shapes."""
    images: list[ImageInput] = [b"rgbrgb", PIXELS, PixelArray(2, 1, PIXELS.data)]
    expected = [encoder.embedding_of(image) for image in images]

    for image, embedding in zip(images, expected, strict=True):
        alone = await engine.embed_images([image], CALL)
        np.testing.assert_allclose(alone.embeddings, [embedding], atol=1e-6)
    cached = await engine.embed_images(list(images), CALL)

    np.testing.assert_allclose(cached.embeddings, expected, atol=1e-6)
    assert cached.timings.cached_item_count == 3


async def test_a_refused_call_is_freed_without_the_collector(engine):
    """The frames in the error's traceback do not refer to its tasks."""

    class Text(str):
        __slots__ = ("__weakref__",)

    async def refuse(text: str) -> None:
        with pytest.raises(ImageUnreadable):
            await engine.embed_jointly(pairs((b"broken", text)), CALL)

    text = Text(" ")
    freed = weakref.ref(text)
    gc.collect()
    gc.disable()
    try:
        await refuse(text)
        del text
        await settle()
        assert freed() is None
    finally:
        gc.enable()
