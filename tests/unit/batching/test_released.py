"""Failed and cancelled calls free their memory at once, without the garbage collector.

An error's traceback holds frames, and the frames hold everything that a call was given. If the error were
kept as a value or in a frame of its own traceback, it would stay until the collector reaches the oldest
generation.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import structlog
from alignserve_server.batching.admission import QueueLimits
from alignserve_server.batching.batcher import Batcher
from alignserve_server.batching.call import CallContext
from alignserve_server.batching.engine import Engine
from alignserve_server.batching.scheduler import BatchPolicy, Scheduler
from alignserve_server.errors import ImageUnreadable, InferenceFailed, ModelStalled, as_value
from alignserve_server.model.encoder import ImageInput, PixelValues
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.model.zero_shot import LabelSet
from alignserve_server.observability.batch_observer import MetricsObserver

from tests.unit.fakes import local_engine, settle

_CALLS = 5  # of each kind


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Disables logging, since whatever keeps log lines is not under test."""

    def drop(*_: object) -> structlog.typing.EventDict:
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[drop])
    yield
    structlog.configure(**before)


class Scratch:
    """Memory that a decoder uses, such as an incomplete image."""

    alive = 0

    def __init__(self) -> None:
        Scratch.alive += 1

    def __del__(self) -> None:
        Scratch.alive -= 1


class Decoder(FakeEncoder):
    """A `FakeEncoder` that raises like decoders: from another error, with the image in its frame."""

    def preprocess_image(self, image: ImageInput) -> PixelValues:
        scratch = Scratch()
        if isinstance(image, bytes) and image.startswith(b"bug"):
            raise ZeroDivisionError
        try:
            return super().preprocess_image(image)
        except ImageUnreadable as error:
            raise ImageUnreadable(f"{type(scratch).__name__} is broken") from error


class Caller:
    """Makes calls of all kinds that fail or are cancelled."""

    def __init__(self, engine: Engine, encoder: FakeEncoder, batcher: Batcher) -> None:
        self._engine = engine
        self._encoder = encoder
        self._batcher = batcher
        self._numbers = itertools.count()

    async def broken_images(self) -> None:
        await self._images(b"broken", b"fine")

    async def bug_in_decoding(self) -> None:
        await self._images(b"bug", b"fine")

    async def long_texts(self) -> None:
        await self._texts("w " * 200, "fine")

    async def poisonous_image(self) -> None:
        poison = self._new().encode()
        self._encoder.failing = {self._encoder.key(poison)}
        await self._engine.embed_images([poison, b"fine"], CallContext())

    async def poisonous_text(self) -> None:
        await self._texts(self._poison(), "fine")

    async def poisonous_text_of_several_callers(self) -> None:
        poison = self._poison()
        await asyncio.gather(*(self._texts(poison) for _ in range(3)))

    async def broken_image_to_classify(self) -> None:
        await self._classify(b"broken", self._new())

    async def long_label(self) -> None:
        await self._classify(b"fine", "w " * 200)

    async def poisonous_label(self) -> None:
        await self._classify(b"fine", self._poison())

    async def poisonous_label_of_several_callers(self) -> None:
        poison = self._poison()
        await asyncio.gather(*(self._classify(b"fine", poison) for _ in range(3)))

    async def late_text(self) -> None:
        deadline = asyncio.get_running_loop().time()
        await self._engine.embed_texts([self._new()], CallContext(deadline))

    async def too_many(self) -> None:
        await self._texts(*["text"] * 2000)

    async def left_images(self) -> None:
        await _leave(self._images(b"fine", b"fine"))

    async def left_texts(self) -> None:
        await _leave(self._texts("w " * 200, "fine"))

    async def left_classify(self) -> None:
        await _leave(self._classify(b"fine", self._new()))

    async def stalled(self) -> None:
        self._encoder.gate.clear()
        calls = [self._texts(self._new()), self._images(b"fine"), self._classify(b"fine", self._new())]
        tasks = asyncio.gather(*calls, return_exceptions=True)
        await settle()
        self._batcher.give_up(lambda: ModelStalled("stuck"))
        self._encoder.gate.set()
        await tasks

    async def ok(self) -> None:
        await self._classify(b"fine", *(self._new() for _ in range(300)))

    async def _images(self, *kinds: bytes) -> None:
        await self._engine.embed_images([kind + self._new().encode() for kind in kinds], CallContext())

    async def _texts(self, *texts: str) -> None:
        await self._engine.embed_texts(texts, CallContext())

    async def _classify(self, image: bytes, *labels: str) -> None:
        content = image + self._new().encode()
        await self._engine.classify([content], LabelSet.of(labels, []), 0, CallContext(), lambda _: None)

    def _poison(self) -> str:
        poison = self._new()
        self._encoder.failing = {self._encoder.key(poison)}
        return poison

    def _new(self) -> str:
        return f"n{next(self._numbers)}"


_KINDS = [name for name in vars(Caller) if not name.startswith("_")]


@pytest.fixture
async def caller(observer: MetricsObserver) -> AsyncIterator[Caller]:
    encoder = Decoder(is_recording=False)
    policies = {modality: BatchPolicy(8) for modality in ("image", "text")}
    batcher = Batcher(encoder, Scheduler(policies), observer, lanes=1)
    batcher.start()
    with ThreadPoolExecutor(2) as pool:
        engine = local_engine(
            encoder,
            batcher,
            pool,
            observer,
            decode_threads=2,
            limits=QueueLimits(1000, 1 << 20),
            label_cache_size=10,
        )
        yield Caller(engine, encoder, batcher)
        assert await batcher.stop(30.0)
        engine.close()


@pytest.mark.parametrize("kind", _KINDS)
async def test_a_call_leaves_no_garbage(caller: Caller, kind: str) -> None:
    """After a call, no frame of the server is left for the garbage collector."""
    await _try(getattr(caller, kind))
    await _let_threads_go()

    with _without_collector():
        for _ in range(_CALLS):
            await _try(getattr(caller, kind))
        await _let_threads_go()
        frames = _garbage_frames()

    assert frames == []
    assert Scratch.alive == 0


async def test_an_error_kept_as_a_value_holds_no_frames() -> None:
    """It has neither its traceback nor its cause."""
    try:
        Decoder().preprocess_image(b"broken")
    except ImageUnreadable as error:
        kept = as_value(error)

    assert kept.message == "Scratch is broken"
    assert Scratch.alive == 0


def test_an_error_can_be_raised_again_for_another_caller() -> None:
    """The copy is equal but has no traceback."""
    error = InferenceFailed("failed", metadata={"error_id": "1"}, retry_delay_seconds=2.0)
    try:
        raise error
    except InferenceFailed:
        other = error.again()

    assert vars(other) == vars(error)
    assert (type(other), str(other), other.__traceback__) == (InferenceFailed, "failed", None)


async def _try(call: Callable[[], Coroutine[Any, Any, None]]) -> None:
    task = asyncio.create_task(call())
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()


async def _let_threads_go() -> None:
    """Waits until threads have dropped their last job: they do so after its result, without an event."""
    for _ in range(20):
        await asyncio.sleep(0.001)


async def _leave(call: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(call)
    for _ in range(6):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


@contextmanager
def _without_collector() -> Iterator[None]:
    """Collects objects that only the collector would free; ignores those that already exist."""
    gc.freeze()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def _garbage_frames() -> list[str]:
    """Returns the names of the server's functions whose frames only the collector could free."""
    gc.collect()
    frames = [found for found in gc.garbage if isinstance(found, FrameType)]
    return [frame.f_code.co_name for frame in frames if "alignserve_server" in frame.f_code.co_filename]
