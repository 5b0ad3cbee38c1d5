"""Calls under load, on slow decoders, and after cancellation."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

import pytest
from alignserve_server.batching.admission import QueueLimits
from alignserve_server.batching.batcher import Batcher
from alignserve_server.batching.call import CallContext, FieldPaths
from alignserve_server.batching.engine import Engine
from alignserve_server.batching.fair_queue import Flow, Priority
from alignserve_server.batching.scheduler import BatchPolicy, Scheduler
from alignserve_server.errors import ImageUnreadable, InvalidArgument, QueueFull, TextTooLong
from alignserve_server.model.encoder import ImageInput, TokenizedText
from alignserve_server.model.zero_shot import LabelSet, ScoredLabel
from alignserve_server.observability.batch_observer import MetricsObserver

from tests.unit.fakes import FakeClock, WatchedEncoder, local_engine, settle

MAX_ITEMS, MAX_BYTES = 8, 8000
OPEN_ITEMS = 6  # three quarters: the most that unary calls may fill
CALL, STREAM_CALL = CallContext(), CallContext(waits_for_room=True)


class SlowDecoder(WatchedEncoder):
    """A `WatchedEncoder` that decodes each image only when the test allows it."""

    def __init__(self) -> None:
        super().__init__()
        self.decodes = threading.Semaphore(0)
        self.decoding: asyncio.Queue[ImageInput] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def preprocess_image(self, image: ImageInput):
        self._loop.call_soon_threadsafe(self.decoding.put_nowait, image)
        assert self.decodes.acquire(timeout=30.0)
        return super().preprocess_image(image)


class SlowTokenizer(WatchedEncoder):
    """A `WatchedEncoder` that records the texts it tokenizes, and waits for the test before each."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizes = threading.Semaphore(0)
        self.tokenized: list[str] = []

    def tokenize(self, text: str, *, truncate: bool) -> TokenizedText:
        self.tokenized.append(text[0])
        assert self.tokenizes.acquire(timeout=30.0)
        return super().tokenize(text, truncate=truncate)


class Content(bytes):
    """An encoded image that counts how many are still in memory."""

    alive = 0

    def __new__(cls, content: bytes) -> Content:
        Content.alive += 1
        return super().__new__(cls, content)

    def __del__(self) -> None:
        Content.alive -= 1


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def encoder() -> SlowDecoder:
    return SlowDecoder()


@pytest.fixture
async def engine(encoder: SlowDecoder, clock: FakeClock, observer: MetricsObserver) -> AsyncIterator[Engine]:
    async with _engine(encoder, clock, observer) as engine:
        yield engine
        encoder.decodes.release(1000)


@asynccontextmanager
async def _engine(
    encoder: WatchedEncoder, clock: FakeClock, observer: MetricsObserver
) -> AsyncIterator[Engine]:
    """An engine with one lane and one decoding thread."""
    policies = {modality: BatchPolicy(8) for modality in ("image", "text")}
    batcher = Batcher(encoder, Scheduler(policies), observer, lanes=1)
    batcher.start()
    with ThreadPoolExecutor(1) as pool:
        engine = local_engine(
            encoder,
            batcher,
            pool,
            observer,
            decode_threads=1,
            limits=QueueLimits(MAX_ITEMS, MAX_BYTES),
            label_cache_size=1000,
            clock=clock,
        )
        yield engine
        encoder.resume()
        assert await batcher.stop(30.0)
        engine.close()


def _embed(engine: Engine, *contents: bytes) -> asyncio.Task[object]:
    return asyncio.create_task(engine.embed_images(list(contents), CALL))


def _classify(engine: Engine, label: str, call: CallContext = CALL) -> asyncio.Task[object]:
    """Classifies an image that no other call sends."""
    image = b"%d" % next(_numbers)
    return asyncio.create_task(engine.classify([image], LabelSet.of([label], []), 0, call, _ignore))


def _ignore(_: object) -> None:
    """Ignores the scores of `Engine.classify`."""


_numbers = itertools.count()


async def test_a_long_text_does_not_wait_behind_images(engine, encoder):
    """Texts have their own threads, so a decoding backlog does not delay them."""
    images = _embed(engine, b"a", b"b")
    await encoder.decoding.get()

    result = await engine.embed_texts(["word " * 1000], CALL, truncate=True)

    assert len(result.embeddings) == 1
    encoder.decodes.release(2)
    await images


async def test_an_image_is_dropped_once_it_is_decoded(engine, encoder):
    """Its bytes are not needed while its pixels wait for the device."""
    encoder.hold()
    call = _embed(engine, Content(b"a"), Content(b"b"))
    await encoder.decoding.get()
    alive_before = Content.alive

    encoder.decodes.release()
    await encoder.decoding.get()
    alive_between = Content.alive
    encoder.decodes.release()
    await encoder.begun()

    assert (alive_before, alive_between, Content.alive) == (2, 1, 0)
    encoder.resume()
    await call


async def test_a_cancelled_call_frees_its_images(engine, encoder):
    """Images that wait for a decoding thread are freed at once and never decoded."""
    first = _embed(engine, b"first")
    await encoder.decoding.get()
    gone = _embed(engine, Content(b"a"), Content(b"b"))
    await settle()

    gone.cancel()
    await asyncio.wait({gone})
    del gone
    last = _embed(engine, b"last")
    await settle()
    alive = Content.alive
    encoder.decodes.release(2)
    await asyncio.gather(first, last)

    assert alive == 0
    assert encoder.decoding.get_nowait() == b"last"


async def test_the_retry_delay_includes_decoding(engine, encoder, clock):
    """If decoding is the bottleneck, the queue is empty but there is no room for a long time."""
    calls = [_embed(engine, b"%d" % number) for number in range(OPEN_ITEMS)]
    await settle()
    clock.advance(2.0)
    encoder.decodes.release()
    await calls[0]
    calls.append(_embed(engine, b"next"))
    await settle()

    with pytest.raises(QueueFull) as refused:
        await engine.embed_images([b"one too many"], CALL)

    assert refused.value.retry_delay_seconds == 2.0 * OPEN_ITEMS
    encoder.decodes.release(OPEN_ITEMS)
    await asyncio.gather(*calls)


async def test_calls_that_wait_for_one_label_are_bounded(engine, encoder, monkeypatch):
    """Together they take one place in the text queue, and no room for images that are already embedded."""
    encoder.decodes.release(1000)
    never = asyncio.Event()
    monkeypatch.setattr(engine._classifier._labels, "_embed_prompts", lambda *_: never.wait())
    waiting = [_classify(engine, "label") for _ in range(OPEN_ITEMS)]
    while len(encoder.seen) < OPEN_ITEMS:
        await encoder.begun()

    with pytest.raises(QueueFull, match="6 Classify items"):
        await _classify(engine, "label")
    images = await engine.embed_images([b"image"] * OPEN_ITEMS, CALL)

    assert len(images.embeddings) == OPEN_ITEMS
    for call in waiting:
        call.cancel()
    await asyncio.wait(waiting)


async def test_a_streamed_classify_waits_where_a_unary_one_is_refused(engine, encoder, monkeypatch):
    """Its images are not admitted meanwhile, so the stream is not read further."""
    encoder.decodes.release(1000)
    admitted = asyncio.Event()
    never = asyncio.Event()
    monkeypatch.setattr(engine._classifier._labels, "_embed_prompts", lambda *_: never.wait())
    waiting = [_classify(engine, "label", STREAM_CALL) for _ in range(OPEN_ITEMS)]
    streamed = _classify(engine, "label", CallContext(waits_for_room=True, on_admitted=admitted.set))
    await settle()
    was_admitted = admitted.is_set()

    waiting[0].cancel()
    await settle()

    assert (was_admitted, admitted.is_set()) == (False, True)
    for call in (streamed, *waiting):
        call.cancel()
    await asyncio.wait([streamed, *waiting])


async def test_label_prompts_take_their_utf8_size(engine, encoder, metrics):
    """A letter like é takes two bytes, however many tokens it has."""
    encoder.decodes.release(1000)
    encoder.hold()
    plug = _embed(engine, b"plug")
    await encoder.begun()

    call = _classify(engine, "é" * 100)
    await settle()

    queued = metrics.registry.get_sample_value("alignserve_queue_bytes", {"modality": "text"})
    assert queued == 200
    encoder.resume()
    await asyncio.gather(plug, call)


@pytest.mark.parametrize(("seconds", "is_expired"), [(-1.0, True), (0.01, True), (1.0, False)])
async def test_a_deadline_has_some_tolerance(seconds: float, is_expired: bool) -> None:
    """A client that stops at its own deadline, slightly before ours, has not cancelled."""
    call = CallContext(deadline=asyncio.get_running_loop().time() + seconds)

    assert call.is_expired() is is_expired


async def test_callers_take_turns_at_decoding(engine, encoder):
    """A caller's single image does not wait for all images of a large caller."""
    flood = CallContext(flow=Flow("flood", Priority.INTERACTIVE))
    small = CallContext(flow=Flow("small", Priority.INTERACTIVE))
    calls = [asyncio.create_task(engine.embed_images([b"f%d" % i], flood)) for i in range(5)]
    await encoder.decoding.get()
    calls.append(asyncio.create_task(engine.embed_images([b"small"], small)))
    await settle()

    decoded = []
    for _ in range(5):
        encoder.decodes.release()
        decoded.append(await encoder.decoding.get())

    assert decoded.index(b"small") <= 2  # behind the image being decoded and one more of the flood
    encoder.decodes.release()
    await asyncio.gather(*calls)


FLOOD, SMALL = (Flow(caller, Priority.INTERACTIVE) for caller in ("flood", "small"))
LONG_TEXT = " word" * 220  # long enough to be tokenized as a job of its own


async def test_callers_take_turns_at_tokenizing(clock, observer):
    """A caller's single text does not wait for all texts of a large caller."""
    encoder = SlowTokenizer()
    async with _engine(encoder, clock, observer) as engine:
        flood = engine.embed_texts(["f" + LONG_TEXT] * 4, CallContext(flow=FLOOD), truncate=True)
        flooding = asyncio.create_task(flood)
        while len(encoder.tokenized) < 2:
            await asyncio.sleep(0.001)
        small = asyncio.create_task(
            engine.embed_texts(["s" + LONG_TEXT], CallContext(flow=SMALL), truncate=True)
        )
        await settle()
        encoder.tokenizes.release(1000)
        await asyncio.gather(small, flooding)

    assert encoder.tokenized.index("s") <= 3  # behind the two being tokenized and the next one


async def test_tokenized_texts_keep_their_order_however_they_are_split(engine, encoder):
    """Short texts share a job and long texts have their own; results keep the order of the call."""
    texts = [f"number {i} " + "word " * (i * 37 % 700) for i in range(40)]

    for start in range(0, 40, 6):
        result = await engine.embed_texts(texts[start : start + 6], CALL, truncate=True)

        expected = [encoder.tokenize(text, truncate=True) for text in texts[start : start + 6]]
        assert result.texts == expected


async def test_errors_name_the_fields_of_the_door(engine, encoder):
    """Every field at fault has the name of the door, also the first one, in the message."""
    encoder.decodes.release(1000)
    long = "word " * 100
    paths = FieldPaths(
        image="input[{}].image".format, text="input[{}]".format, label="candidate_labels[{}]".format
    )
    call = CallContext(paths=paths)

    with pytest.raises(ImageUnreadable) as images:
        await engine.embed_images([b"whole", b"broken", b"broken too"], call)
    with pytest.raises(TextTooLong) as texts:
        await engine.embed_texts(["short", long], call)
    with pytest.raises(TextTooLong) as labels:
        await engine.classify([b"whole"], LabelSet.of(["cat", long], []), 0, call, _ignore)

    assert images.value.message == "input[1].image: image is empty or broken (and 1 more)"
    assert _fields_of(images.value) == ["input[1].image", "input[2].image"]
    assert _fields_of(texts.value) == ["input[1]"]
    assert _fields_of(labels.value) == ["candidate_labels[1]"]


def _fields_of(error: InvalidArgument) -> list[str]:
    return [violation.field for violation in error.violations]


async def test_labels_and_templates_take_room_until_the_call_ends(engine, encoder):
    """A second large call is refused until the first has ended."""
    encoder.hold()
    encoder.decodes.release(1000)
    large = partial(_classify_labels, engine, ["l" * 3000], ["{label}" + "t" * 2000])
    first = large()
    await settle()

    with pytest.raises(QueueFull, match="label set"):
        await large()
    encoder.resume()
    await first
    again = await large()

    assert again == ["l" * 3000]


async def test_cached_labels_also_take_room(engine, encoder):
    """The call holds their bytes just as long, although they need not be embedded."""
    encoder.decodes.release(1000)
    large = partial(_classify_labels, engine, ["l" * 5000], [])
    await large()
    encoder.hold()
    first = large()
    await encoder.begun()
    await settle()

    with pytest.raises(QueueFull, match="label set"):
        await large()

    encoder.resume()
    await first


async def test_a_stream_waits_for_room_for_its_labels(engine, encoder):
    """It is not admitted, so not read further, until the labels of other calls are freed."""
    encoder.hold()
    encoder.decodes.release(1000)
    admitted = asyncio.Event()
    first = _classify_labels(engine, ["l" * 5000], [])
    await settle()
    call = CallContext(waits_for_room=True, on_admitted=admitted.set)
    second = _classify_labels(engine, ["m" * 5000], [], call)
    await settle()
    was_admitted = admitted.is_set()

    encoder.resume()
    await asyncio.gather(first, second)

    assert (was_admitted, admitted.is_set()) == (False, True)


async def test_labels_above_the_limit_run_by_themselves(engine, encoder):
    """A request within its own limits is not refused forever."""
    encoder.decodes.release(1000)

    labels = await _classify_labels(engine, ["l" * (MAX_BYTES + 1)], [])

    assert len(labels) == 1


async def test_callers_take_turns_at_large_answers(engine, encoder):
    """A small answer does not wait until a large answer is complete."""
    encoder.decodes.release(1000)
    labels = LabelSet.of([f"label {i}" for i in range(300)], [])
    built: list[str] = []
    may_go = threading.Event()

    def build(caller: str, _: list[ScoredLabel]) -> None:
        built.append(caller)
        assert may_go.wait(30.0)

    async def classify(flow: Flow, images: int) -> None:
        contents = [f"{flow.caller} {i}".encode() for i in range(images)]
        await engine.classify(contents, labels, 0, CallContext(flow=flow), partial(build, flow.caller))

    flood = asyncio.create_task(classify(FLOOD, 5))
    while not built:
        await asyncio.sleep(0.001)
    small = asyncio.create_task(classify(SMALL, 1))
    while len(encoder.seen) < 306:
        await encoder.begun()
    await settle()
    may_go.set()
    await asyncio.gather(flood, small)

    assert built.index("small") <= 2


def _classify_labels(
    engine: Engine, labels: list[str], templates: list[str], call: CallContext = CALL
) -> asyncio.Task[list[str]]:
    """Classifies an image that no other call sends; returns its labels, best first."""

    async def classify() -> list[str]:
        found: list[ScoredLabel] = []
        image = b"%d" % next(_numbers)
        await engine.classify([image], LabelSet.of(labels, templates), 0, call, found.extend)
        return [labels[each.label_index] for each in found]

    return asyncio.create_task(classify())
