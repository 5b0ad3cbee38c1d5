"""Whatever one caller sends, another caller is served soon, and the event loop keeps running."""

from __future__ import annotations

import asyncio
import math
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

import grpc
import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from alignserve_server.access.keys import Scope, changed_keys, new_key
from prometheus_client.parser import text_string_to_metric_families

from tests.hostile.lag import MAX_LAG_PARSES, TickingServer, ticking_server
from tests.hostile.live import LiveServer
from tests.integration.serving import connect, image_request, text_request, until
from tests.processes import ServerProcess, server_process

pytestmark = [pytest.mark.hostile, pytest.mark.long]

# Slow enough for a busy machine, which delays everything except a model that sleeps.
_SLOW_MODEL = (
    sys.executable, "-c", "from tests.load.peers.sleeping_server import main; main(slower=5)"
)  # fmt: skip
_BATCH = 16
_TRIES = 3
_SOON_BATCHES = 8  # the running batch, the next one, the neighbour's, and the flood's in between
_PATIENCE_SECONDS = 120.0  # only a failing test waits this long; the server would refuse a close deadline
_LONG_SECONDS = 2.0
_RESPONSE_BYTES = 16 << 20  # the server's limit; a default client gets at most 4 MiB
_LARGE_RESPONSE = [("alignserve-max-response-bytes", str(_RESPONSE_BYTES))]
_LABELS = 1000
_TEMPLATES = [f"{{label}}, {i}" for i in range(40)]


class Guest:
    """A caller with its own key."""

    def __init__(self, stub: pb_grpc.AlignServiceAsyncStub, key: str) -> None:
        self._stub = stub
        self._options: dict[str, Any] = {
            "metadata": [("authorization", f"Bearer {key}")],
            "timeout": _PATIENCE_SECONDS,
        }

    async def classify(self, image: bytes, labels: Sequence[str], templates: Sequence[str] = ()) -> None:
        request = pb.ClassifyRequest(
            images=[pb.Image(content=image)], labels=labels, prompt_templates=templates
        )
        await self._stub.Classify(request, **self._options)

    async def embed_images(self, *contents: bytes) -> None:
        await self._stub.EmbedImage(image_request(*contents), **self._options)

    async def embed_texts(self, *texts: str) -> None:
        await self._stub.EmbedText(text_request(*texts), **self._options)


class Crowd:
    """A server with a slow model, a caller that floods it, and a neighbour."""

    def __init__(self, server: ServerProcess, flood: Guest, neighbour: Guest) -> None:
        self.flood = flood
        self.neighbour = neighbour
        self._metrics_port = server.metrics_port

    async def batches_until(
        self,
        modality: str,
        flood: Callable[[int], Iterable[Awaitable[None]]],
        neighbour: Callable[[int], Awaitable[None]],
    ) -> float:
        """Returns how many batches run until the neighbour has its answer, while the flood waits.

        The least of three tries, or the first that is soon: the model does not wait for a busy machine.
        Both callers get the number of the try, to send what no earlier try left in a cache.
        """
        seen = []
        for number in range(_TRIES):
            seen.append(await self._batches_until(modality, flood(number), neighbour(number)))
            if seen[-1] <= _SOON_BATCHES:
                break
        return min(seen)

    async def _batches_until(
        self, modality: str, flood: Iterable[Awaitable[None]], neighbour: Awaitable[None]
    ) -> float:
        """Tries once; infinity if a call of the flood ends first."""
        flooding = [asyncio.ensure_future(call) for call in flood]
        try:
            await until(lambda: self._is_flooded(modality))
            before = await self._sample("alignserve_batch_size_count", modality)
            await neighbour
            after = await self._sample("alignserve_batch_size_count", modality)
            if any(call.done() for call in flooding[1:]):
                return math.inf
        finally:
            for call in flooding:
                call.cancel()
            await asyncio.wait(flooding)
        return after - before

    async def _is_flooded(self, modality: str) -> bool:
        return await self._sample("alignserve_queue_entries", modality) >= 2 * _BATCH

    async def _sample(self, name: str, modality: str) -> float:
        page = await asyncio.to_thread(self._read_page)
        return next(
            sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == name and sample.labels.get("modality") == modality
        )

    def _read_page(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/metrics") as page:
            return page.read().decode()


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, dict[str, str]]]:
    """A server whose batches take 100 ms and 10 ms more per entry, and its API keys."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    made = {}
    with changed_keys(file) as keys:
        for name in ("flood", "neighbour"):
            made[name], keys[name] = new_key(name, frozenset({Scope.EMBED, Scope.CLASSIFY}))
    flags = ("--max-batch-size", str(_BATCH), "--text-cache-bytes", "0", "--api-keys-file", str(file))
    with server_process(*flags, program=_SLOW_MODEL) as server:
        yield server, made


@pytest.fixture
async def crowd(slow_server: tuple[ServerProcess, dict[str, str]]) -> AsyncIterator[Crowd]:
    server, keys = slow_server
    async with connect(server.port) as channel:
        stub = pb_grpc.AlignServiceStub(channel)
        yield Crowd(server, Guest(stub, keys["flood"]), Guest(stub, keys["neighbour"]))


async def test_a_shared_label_does_not_wait_for_a_backlog_of_labels(crowd: Crowd) -> None:
    """The last of another's 1,000 labels with 40 templates is embedded at the neighbour's own turns."""

    def labels(number: int) -> list[str]:
        return [f"label {number} {i}" for i in range(_LABELS)]

    batches = await crowd.batches_until(
        "text",
        lambda number: [crowd.flood.classify(b"a %d" % number, labels(number), _TEMPLATES)],
        lambda number: crowd.neighbour.classify(b"mine %d" % number, labels(number)[-1:], _TEMPLATES),
    )

    assert batches <= _SOON_BATCHES


async def test_a_label_that_a_backlog_has_started_does_not_wait_for_its_turns(crowd: Crowd) -> None:
    """The first label of several backlogs is embedded at the first turn of any caller that wants it."""

    def labels(number: int, backlog: int) -> list[str]:
        return [f"label {number} {backlog} {i}" for i in range(_LABELS)]

    batches = await crowd.batches_until(
        "text",
        lambda number: [
            crowd.flood.classify(b"%d %d" % (number, i), labels(number, i), _TEMPLATES) for i in range(8)
        ],
        lambda number: crowd.neighbour.classify(b"mine %d" % number, labels(number, 7)[:1], _TEMPLATES),
    )

    assert batches <= _SOON_BATCHES


async def test_a_shared_image_does_not_wait_for_a_backlog_of_images(crowd: Crowd) -> None:
    """An image equal to the last of another caller's 512 is embedded at the neighbour's first turn."""

    def images(number: int) -> list[bytes]:
        return [b"image %d %d" % (number, i) for i in range(512)]

    batches = await crowd.batches_until(
        "image",
        lambda number: [crowd.flood.embed_images(*images(number)[i : i + 64]) for i in range(0, 512, 64)],
        lambda number: crowd.neighbour.embed_images(images(number)[-1]),
    )

    assert batches <= _SOON_BATCHES


async def test_a_shared_text_does_not_wait_for_a_backlog_of_texts(crowd: Crowd) -> None:
    """A text equal to the last of another caller's 512 is embedded at the neighbour's first turn."""

    def texts(number: int) -> list[str]:
        return [f"text {number} {i}" for i in range(512)]

    batches = await crowd.batches_until(
        "text",
        lambda number: [crowd.flood.embed_texts(*texts(number)[i : i + 64]) for i in range(0, 512, 64)],
        lambda number: crowd.neighbour.embed_texts(texts(number)[-1]),
    )

    assert batches <= _SOON_BATCHES


async def test_texts_that_take_long_to_refuse_do_not_delay_others(live: LiveServer) -> None:
    """A text is tokenized before most of another priority's 512 texts of 32 kB each."""
    bulk = [("alignserve-priority", "bulk")]
    request = text_request(*["a " * 16_000] * 64)
    floods = [asyncio.ensure_future(live.stub.EmbedText(request, metadata=bulk)) for _ in range(8)]
    await asyncio.sleep(0)

    await live.stub.EmbedText(text_request("not short " * 300, truncate=True))
    refused = sum(flood.done() for flood in floods)

    for flood in floods:
        flood.cancel()
    await asyncio.wait(floods)
    assert refused <= 2


@pytest.fixture(scope="module")
def unloaded() -> Iterator[TickingServer]:
    """A server with a trivial model, whose event loop lag is measured."""
    with ticking_server("--checkpoint", "fake") as unloaded:
        yield unloaded


@pytest.fixture
async def stub(unloaded: TickingServer) -> AsyncIterator[pb_grpc.AlignServiceAsyncStub]:
    options = [("grpc.max_receive_message_length", _RESPONSE_BYTES)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{unloaded.server.port}", options=options) as channel:
        yield pb_grpc.AlignServiceStub(channel)


def _images(size_bytes: int = 100) -> list[pb.Image]:
    return [pb.Image(content=bytes([i]) * size_bytes) for i in range(1, 65)]


def _known_labels() -> pb.ClassifyRequest:
    return pb.ClassifyRequest(images=_images(), labels=[f"label {i} ".ljust(80, "l") for i in range(_LABELS)])


def _long_labels() -> pb.ClassifyRequest:
    """Builds a request of almost 16 MB: each label is one long word outside ASCII."""
    labels = [f"{i}".ljust(8_000, "é") for i in range(_LABELS)]
    return pb.ClassifyRequest(images=_images()[:1], labels=labels)


def _few_long_labels() -> pb.ClassifyRequest:
    """Builds a request of 8 MB whose scores are few enough to be written on the event loop."""
    return pb.ClassifyRequest(images=_images()[:1], labels=[f"{i}".ljust(32_000, "l") for i in range(256)])


def _many_prompts() -> pb.ClassifyRequest:
    labels = [f"{i}".ljust(200, "l") for i in range(_LABELS)]
    return pb.ClassifyRequest(
        images=_images(), labels=labels, prompt_templates=[f"{i} {{label}}" for i in range(100)], top_k=5
    )


def _almost_equal_pixels() -> pb.CompareRequest:
    """Builds a request of almost 16 MB, whose images differ only in the middle."""
    half = bytes(288 * 144 * 3)
    arrays = [half[:-1] + bytes([i]) + half for i in range(64)]
    images = [pb.Image(pixels=pb.Pixels(height=288, width=288, data=array)) for array in arrays]
    return pb.CompareRequest(pairs=[pb.ImageTextPair(image=image, text="a") for image in images])


WORST = {
    "known labels": ("Classify", _known_labels),
    "long labels": ("Classify", _long_labels),
    "few long labels": ("Classify", _few_long_labels),
    "many prompts": ("Classify", _many_prompts),
    "pixels": ("Compare", _almost_equal_pixels),
    "images as lists": ("EmbedImage", lambda: pb.EmbedImageRequest(images=_images(250_000))),
    "long texts": ("EmbedText", lambda: text_request(*["é " * 10_900] * 64, truncate=True)),
}


@pytest.mark.parametrize("by_stream", [False, True], ids=["call", "stream"])
@pytest.mark.parametrize("name", WORST)
async def test_the_largest_requests_do_not_block_the_event_loop(
    unloaded: TickingServer, stub: pb_grpc.AlignServiceAsyncStub, name: str, by_stream: bool
) -> None:
    """The largest valid request of each kind is checked, tokenized and answered off the loop."""
    method, make = WORST[name]
    send = (streamed if by_stream else called)(stub, method, make())

    lag = await unloaded.least_lag_in_parses(lambda: ended(send()), MAX_LAG_PARSES)

    assert lag < MAX_LAG_PARSES


def called(stub: pb_grpc.AlignServiceAsyncStub, method: str, request: Any) -> Callable[[], Awaitable[object]]:
    """Returns a function that sends a request as a call that accepts the largest response."""
    return lambda: getattr(stub, method)(request, metadata=_LARGE_RESPONSE)


def streamed(
    stub: pb_grpc.AlignServiceAsyncStub, method: str, request: Any
) -> Callable[[], Awaitable[object]]:
    """Returns a function that sends a request as the only item of a stream."""
    field = {
        "Classify": "classify", "Compare": "compare", "EmbedImage": "embed_image", "EmbedText": "embed_text",
    }[method]  # fmt: skip

    async def send() -> None:
        item = pb.StreamInferRequest(correlation_id="a", **{field: request})
        async for response in stub.StreamInfer(iter([item]), metadata=_LARGE_RESPONSE):
            assert response.WhichOneof("result") == field

    return send


async def ended(call: Awaitable[object]) -> None:
    """Awaits a call for a limited time, by which even a long one has had its effect on the loop."""
    task = asyncio.ensure_future(call)
    done, _ = await asyncio.wait([task], timeout=_LONG_SECONDS)
    if done:
        task.result()
    task.cancel()
    await asyncio.wait([task])
