"""An engine whose backend is in another process serves as one whose backend is in its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from alignserve_server.batching.call import CallContext
from alignserve_server.batching.embedder import TextEmbeddings
from alignserve_server.batching.engine import Engine
from alignserve_server.batching.preprocessor import Preprocessor
from alignserve_server.errors import ExpiredInQueue, QueueFull
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.model.zero_shot import LabelSet, ScoredLabel
from alignserve_server.observability.batch_observer import MetricsObserver
from alignserve_server.observability.tracing import CallTrace, Tracing
from structlog.testing import capture_logs

from tests.unit.batching.remote_backend import LIMITS, OPEN_ITEMS, RemoteBackend
from tests.unit.fakes import settle

_ROOT = Path(__file__).parents[3]
CALL, STREAM_CALL = CallContext(), CallContext(waits_for_room=True)


@contextmanager
def _process(role: str, path: str) -> Iterator[subprocess.Popen[str]]:
    """Runs a process once it has said that it is ready; kills it in the end."""
    command = [sys.executable, "-m", "tests.unit.batching.remote_backend", role, path]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The socket of a process that has the encoder, the queues and the caches."""
    path = str(tmp_path_factory.mktemp("device") / "socket")
    with _process("device", path):
        yield path


@pytest.fixture
def tracing() -> Tracing:
    """Follows every call, for the access log."""
    return Tracing(None, 1.0)


@pytest.fixture
async def backend(device: str, tracing: Tracing) -> AsyncIterator[RemoteBackend]:
    backend = await RemoteBackend.connect(device, tracing.note_batch)
    yield backend
    await backend.ask("resume")
    await backend.close()


@pytest.fixture
async def engine(backend: RemoteBackend, observer: MetricsObserver) -> AsyncIterator[Engine]:
    with ThreadPoolExecutor(1) as pool:
        preprocessor = Preprocessor(FakeEncoder(), pool, observer, decode_threads=1)
        engine = Engine(preprocessor, backend, observer, LIMITS, label_cache_size=100)
        yield engine
        engine.close()


async def _let_device_read(backend: RemoteBackend) -> None:
    """Comes back once the device has begun to answer all that was asked before."""
    await settle()
    await backend.ask("info")


async def _occupy(engine: Engine, backend: RemoteBackend, name: str) -> asyncio.Task[object]:
    """Keeps the device's lane busy with a text until the device is told to resume."""
    await backend.ask("hold")
    task: asyncio.Task[object] = asyncio.create_task(engine.embed_texts([name], CALL))
    await backend.ask("begun")
    return task


async def _admitted(engine: Engine, texts: list[str], call: CallContext) -> asyncio.Task[TextEmbeddings]:
    """Starts to embed texts, and comes back once they have room."""
    has_room = asyncio.Event()
    call = replace(call, on_admitted=has_room.set)
    task = asyncio.create_task(engine.embed_texts(texts, call))
    await has_room.wait()
    return task


async def test_images_and_texts_come_back_as_their_own(engine: Engine) -> None:
    """Each at its position, as the encoder embeds it."""
    images = await engine.embed_images([b"one", b"two"], CALL)
    texts = await engine.embed_texts(["a cat", "a dog"], CALL)

    encoder = FakeEncoder()
    np.testing.assert_array_equal(images.embeddings, [encoder.embedding_of(b) for b in (b"one", b"two")])
    np.testing.assert_array_equal(texts.embeddings, [encoder.embedding_of(t) for t in ("a cat", "a dog")])
    assert engine.info.embedding_dimension == images.embeddings.shape[1]


async def test_what_one_call_embedded_another_finds_in_the_cache(engine: Engine) -> None:
    """The caches are the device's: an image that is there is not decoded, and a text not run."""
    found = []
    for _ in range(2):
        images = await engine.embed_images([b"again"], CALL)
        texts = await engine.embed_texts(["again", "and again"], CALL)
        found.append((images.timings.cached_item_count, texts.timings.cached_item_count))

    assert found == [(0, 0), (1, 2)]


async def test_an_image_is_classified(engine: Engine) -> None:
    """The label with its own embedding is the best one, at once as well as from the cache."""
    found: list[list[ScoredLabel]] = []
    labels = LabelSet.of(["a cat", "a dog"], ["{label}", "a photo of {label}"])

    counts = [
        (await engine.classify([b"%d" % i], labels, 0, CALL, found.append)).cached_label_count
        for i in range(2)
    ]

    assert counts == [0, 2]
    assert [{label.label_index for label in of_image} for of_image in found] == [{0, 1}, {0, 1}]


async def test_a_call_without_room_is_refused(engine: Engine, backend: RemoteBackend) -> None:
    """With the message and the delay that the device gives."""
    plug = await _occupy(engine, backend, "full")
    waiting = await _admitted(engine, [f"full {i}" for i in range(OPEN_ITEMS)], CALL)

    with pytest.raises(QueueFull, match=f"{OPEN_ITEMS} text items") as refused:
        await engine.embed_texts(["one too many"], CALL)

    assert refused.value.retry_delay_seconds
    await backend.ask("resume")
    await asyncio.gather(plug, waiting)


async def test_a_call_expires_in_the_queue(engine: Engine, backend: RemoteBackend) -> None:
    """The deadline is the same moment in both processes."""
    plug = await _occupy(engine, backend, "late")
    deadline = asyncio.get_running_loop().time() + 0.1

    with pytest.raises(ExpiredInQueue):
        await engine.embed_texts(["too late"], CallContext(deadline, waits_for_room=True))

    await backend.ask("resume")
    await plug


@pytest.mark.parametrize("call", [CALL, STREAM_CALL], ids=["unary", "stream"])
async def test_a_cancelled_call_leaves_its_room_to_others(
    engine: Engine, backend: RemoteBackend, call: CallContext
) -> None:
    """Whether it had its room already or still waited for it."""
    plug = await _occupy(engine, backend, f"left {call.waits_for_room}")
    holding = await _admitted(engine, ["left"] * OPEN_ITEMS, call)
    waiting = asyncio.create_task(engine.embed_texts(["waits"] * OPEN_ITEMS, STREAM_CALL))
    await _let_device_read(backend)

    waiting.cancel()
    holding.cancel()
    await asyncio.wait([waiting, holding])
    again = await _admitted(engine, ["again"] * OPEN_ITEMS, call)
    await backend.ask("resume")

    assert len((await again).embeddings) == OPEN_ITEMS
    await plug


async def test_a_killed_front_leaves_nothing_reserved(
    engine: Engine, backend: RemoteBackend, device: str
) -> None:
    """What it held goes to the calls of other fronts."""
    plug = await _occupy(engine, backend, "killed")
    admitted = asyncio.Event()
    call = CallContext(waits_for_room=True, on_admitted=admitted.set)
    with _process("front", device) as front:
        waiting = asyncio.create_task(engine.embed_texts(["w"] * OPEN_ITEMS, call))
        await _let_device_read(backend)
        was_admitted = admitted.is_set()

        front.kill()
        await admitted.wait()

    assert not was_admitted
    await backend.ask("resume")
    await asyncio.gather(plug, waiting)


async def test_a_call_is_sampled_to_its_batch(engine: Engine, tracing: Tracing) -> None:
    """The device reports it by the number of the reservation, before the answer is there."""
    trace = tracing.begin("service", "EmbedText", lambda: None)
    assert isinstance(trace, CallTrace)

    with capture_logs() as lines:
        await engine.embed_texts(["one text", "another one"], CallContext(trace=trace))
        trace.end("OK")

    (line,) = lines
    assert (line["batch_size"], line["items"]) == (2, 2)
    assert {"admission_seconds", "preprocess_seconds", "queue_seconds", "compute_seconds"} <= line.keys()
