"""The way of a call, where it is crowded, slow, or left early."""

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
from alignserve_server.model.encoder import TokenizedText
from alignserve_server.model.zero_shot import LabelSet, ScoredLabel
from alignserve_server.observability.batch_observer import MetricsObserver

from tests.unit.fakes import FakeClock, WatchedEncoder, local_engine, settle

MAX_ITEMS, MAX_BYTES = 8, 8000
OPEN_ITEMS = 6  # three quarters: as many as unary calls may fill
CALL, STREAM_CALL = CallContext(), CallContext(waits_for_room=True)


class SlowDecoder(WatchedEncoder):
    """A `WatchedEncoder` whose decoding waits for the test, image by image."""

    def __init__(self) -> None:
        super().__init__()
        self.decodes = threading.Semaphore(0)
        self.decoding: asyncio.Queue[bytes] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def preprocess_image(self, content: bytes):
        self._loop.call_soon_threadsafe(self.decoding.put_nowait, bytes(content))
        assert self.decodes.acquire(timeout=30.0)
        return super().preprocess_image(content)


class SlowTokenizer(WatchedEncoder):
    """A `WatchedEncoder` that tells which texts it tokenizes, each of which waits for the test."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizes = threading.Semaphore(0)
        self.tokenized: list[str] = []

    def tokenize(self, text: str, *, truncate: bool) -> TokenizedText:
        self.tokenized.append(text[0])
        assert self.tokenizes.acquire(timeout=30.0)
        return super().tokenize(text, truncate=truncate)


class Content(bytes):
    """An encoded image that tells whether it is still in memory."""

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
    """One lane, one thread that decodes."""
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
    """Classifies an image that no other call has."""
    image = b"%d" % next(_numbers)
    return asyncio.create_task(engine.classify([image], LabelSet.of([label], []), 0, call, _ignore))


def _ignore(_: object) -> None:
    """Takes what `Engine.classify` has scored."""


_numbers = itertools.count()


async def test_a_long_text_does_not_wait_behind_images(engine, encoder):
    """Texts have threads of their own, so that a backlog of decoding does not hold them up."""
    images = _embed(engine, b"a", b"b")
    await encoder.decoding.get()

    result = await engine.embed_texts(["word " * 1000], CALL, truncate=True)

    assert len(result.embeddings) == 1
    encoder.decodes.release(2)
    await images


async def test_an_image_is_dropped_when_it_is_decoded(engine, encoder):
    """While its pixels wait for the device, nobody needs its bytes."""
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


async def test_a_caller_who_leaves_takes_the_images_along(engine, encoder):
    """Those that wait for a thread to decode them are freed at once, and are not decoded."""
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


async def test_the_retry_delay_counts_what_is_still_being_decoded(engine, encoder, clock):
    """With decoding as the bottleneck the queue is empty, and still there is no room for long."""
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
    """They take one place in the queue of texts, and none in that of images once these are embedded."""
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


async def test_a_classify_in_a_stream_waits_where_a_unary_one_is_refused(engine, encoder, monkeypatch):
    """Its images are not admitted before, so that the stream is not read."""
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


async def test_label_prompts_take_as_many_bytes_as_they_have(engine, encoder, metrics):
    """Two bytes for a letter like é, whatever its tokens."""
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
    """A client that leaves at its own deadline, a moment before ours, has not cancelled."""
    call = CallContext(deadline=asyncio.get_running_loop().time() + seconds)

    assert call.is_expired() is is_expired


async def test_callers_take_turns_at_decoding(engine, encoder):
    """One image of a small caller is not decoded after all of a large one's."""
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

    assert decoded.index(b"small") <= 2  # behind the one that a thread has by then, and one of the flood's
    encoder.decodes.release()
    await asyncio.gather(*calls)


FLOOD, SMALL = (Flow(caller, Priority.INTERACTIVE) for caller in ("flood", "small"))
LONG_TEXT = " word" * 220  # so long that each is tokenized on its own


async def test_callers_take_turns_at_tokenizing(clock, observer):
    """One text of a small caller is not tokenized after all of a large one's."""
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

    assert encoder.tokenized.index("s") <= 3  # behind the two that threads have, and one that is next


async def test_texts_are_tokenized_in_order_however_they_are_split(engine, encoder):
    """Short ones together and long ones alone, each at its place."""
    texts = [f"number {i} " + "word " * (i * 37 % 700) for i in range(40)]

    for start in range(0, 40, 6):
        result = await engine.embed_texts(texts[start : start + 6], CALL, truncate=True)

        expected = [encoder.tokenize(text, truncate=True) for text in texts[start : start + 6]]
        assert result.texts == expected


async def test_errors_name_the_fields_of_the_door(engine, encoder):
    """All that are at fault, and the first one in the message too."""
    encoder.decodes.release(1000)
    long = "word " * 100
    paths = FieldPaths(image="input[{}].image", text="input[{}]", label="candidate_labels[{}]")
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


async def test_label_bytes_are_room_until_the_call_is_over(engine, encoder):
    """Those of templates too; a second large call is refused as long as the first is there."""
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


async def test_known_labels_are_room_too(engine, encoder):
    """They are held as long, though nobody has to embed them."""
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
    """It is not admitted, and so not read on, before others' labels are gone."""
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


async def test_labels_larger_than_the_room_run_alone(engine, encoder):
    """What passed the request's own limits is never refused for ever."""
    encoder.decodes.release(1000)

    labels = await _classify_labels(engine, ["l" * (MAX_BYTES + 1)], [])

    assert len(labels) == 1


async def test_callers_take_turns_at_large_answers(engine, encoder):
    """A small answer is not built after all of a large one's images."""
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
    """Classifies an image that no other call has; returns its labels, best first."""

    async def classify() -> list[str]:
        found: list[ScoredLabel] = []
        contents = [b"%d" % next(_numbers)]
        await engine.classify(contents, LabelSet.of(labels, templates), 0, call, found.extend)
        return [labels[each.label_index] for each in found]

    return asyncio.create_task(classify())
