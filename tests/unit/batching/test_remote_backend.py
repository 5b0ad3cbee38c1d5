"""An engine works the same with a backend in another process as with a local one."""

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
    """Starts a process, waits until it is ready, and kills it at the end."""
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
    """The socket of a process with the encoder, the queues and the caches."""
    path = str(tmp_path_factory.mktemp("device") / "socket")
    with _process("device", path):
        yield path


@pytest.fixture
def tracing() -> Tracing:
    """Samples every call for the access log."""
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
    """Returns once the device has started to answer all earlier requests."""
    await settle()
    await backend.ask("info")


async def _occupy(engine: Engine, backend: RemoteBackend, name: str) -> asyncio.Task[object]:
    """Keeps the device's lane busy with a text until the test resumes the encoder."""
    await backend.ask("hold")
    task: asyncio.Task[object] = asyncio.create_task(engine.embed_texts([name], CALL))
    await backend.ask("begun")
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
    images = await engine.embed_images([b"one", b"two"], CALL)
    texts = await engine.embed_texts(["a cat", "a dog"], CALL)

    encoder = FakeEncoder()
    np.testing.assert_array_equal(images.embeddings, [encoder.embedding_of(b) for b in (b"one", b"two")])
    np.testing.assert_array_equal(texts.embeddings, [encoder.embedding_of(t) for t in ("a cat", "a dog")])
    assert engine.info.embedding_dimension == images.embeddings.shape[1]


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


async def test_a_call_without_room_is_refused(engine: Engine, backend: RemoteBackend) -> None:
    """The refusal has the device's message and retry delay."""
    plug = await _occupy(engine, backend, "full")
    waiting = await _admitted(engine, [f"full {i}" for i in range(OPEN_ITEMS)], CALL)

    with pytest.raises(QueueFull, match=f"{OPEN_ITEMS} text items") as refused:
        await engine.embed_texts(["one too many"], CALL)

    assert refused.value.retry_delay_seconds
    await backend.ask("resume")
    await asyncio.gather(plug, waiting)


async def test_a_call_expires_in_the_queue(engine: Engine, backend: RemoteBackend) -> None:
    """A deadline means the same moment in both processes."""
    plug = await _occupy(engine, backend, "late")
    deadline = asyncio.get_running_loop().time() + 0.1

    with pytest.raises(ExpiredInQueue):
        await engine.embed_texts(["too late"], CallContext(deadline, waits_for_room=True))

    await backend.ask("resume")
    await plug


@pytest.mark.parametrize("call", [CALL, STREAM_CALL], ids=["unary", "stream"])
async def test_a_cancelled_call_frees_its_room(
    engine: Engine, backend: RemoteBackend, call: CallContext
) -> None:
    """This holds whether it already had room or was still waiting for it."""
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
    """Its room goes to calls of other fronts."""
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
