"""Failed calls leave no memory behind, and waiting calls stay within the memory budget.

gRPC keeps the exception that ends a call, and with it the frames that raised it.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import grpc
import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from PIL import Image

from tests.hostile.live import LiveServer, MemoryWatch
from tests.integration.serving import connect, image_request, text_request
from tests.processes import ServerProcess, server_process

pytestmark = [pytest.mark.hostile, pytest.mark.long]

_MB = 1 << 20
_UNCOLLECTED = (sys.executable, "-m", "tests.hostile.uncollected")
_SLOW_MODEL = (sys.executable, "-m", "tests.load.peers.sleeping_server")
_SIDE = 2000  # 12 MB of pixels
_MOST_GROWTH = 100 * _MB


@pytest.fixture(scope="module")
def uncollected() -> Iterator[ServerProcess]:
    """A server on the embedded checkpoint, without garbage collection."""
    with server_process("--decode-threads", "1", program=_UNCOLLECTED) as server:
        yield server


@pytest.fixture
async def live(uncollected: ServerProcess) -> AsyncIterator[LiveServer]:
    async with connect(uncollected.port) as channel:
        yield LiveServer(uncollected, channel)


def _cut_image(number: int) -> bytes:
    """Builds a PNG whose pixel data is cut off."""
    buffer = io.BytesIO()
    Image.new("RGB", (_SIDE, _SIDE), (number, number, number)).save(buffer, "PNG")
    content = buffer.getvalue()
    return content[: len(content) * 98 // 100]


def _cut_images() -> pb.EmbedImageRequest:
    return image_request(*map(_cut_image, range(8)))


def _broken_to_classify() -> pb.ClassifyRequest:
    images = [pb.Image(content=_cut_image(number)) for number in range(8)]
    return pb.ClassifyRequest(images=images, labels=["a", "b"])


def _long_texts() -> pb.EmbedTextRequest:
    return text_request(*["a " * 4000] * 64)


def _too_many_texts() -> pb.EmbedTextRequest:
    return text_request(*["a" * 16_000] * 65)


def _broken_image() -> pb.EmbedImageRequest:
    return image_request(b"broken" + bytes(_MB))


def _blank_label() -> pb.ClassifyRequest:
    return pb.ClassifyRequest(images=[pb.Image(content=bytes(_MB))], labels=[" "])


# If refused calls kept their data, this many of each would grow memory by at least twice the bound: the
# first three keep pixels or tokens, the others a request of 1 MB.
REFUSED = {
    "cut images": ("EmbedImage", _cut_images, 2),
    "cut images to classify": ("Classify", _broken_to_classify, 2),
    "long texts": ("EmbedText", _long_texts, 15),
    "too many texts": ("EmbedText", _too_many_texts, 200),
    "broken image": ("EmbedImage", _broken_image, 200),
    "blank label": ("Classify", _blank_label, 200),
}
_FIELDS = {"EmbedImage": "embed_image", "EmbedText": "embed_text", "Classify": "classify"}


@pytest.mark.parametrize("by_stream", [False, True], ids=["call", "stream"])
@pytest.mark.parametrize("name", REFUSED)
async def test_refused_calls_leave_nothing_behind(live: LiveServer, name: str, by_stream: bool) -> None:
    """Memory is the same after many of them, even without a garbage collector."""
    method, make, count = REFUSED[name]
    request = make()
    await _refused(live, method, [request], by_stream=by_stream)
    watch = live.watch_memory()

    await _refused(live, method, [request] * count, by_stream=by_stream)

    assert watch.growth < _MOST_GROWTH


@pytest.mark.parametrize("by_stream", [False, True], ids=["call", "stream"])
async def test_malformed_messages_leave_nothing_behind(live: LiveServer, by_stream: bool) -> None:
    """Each of these messages ends its call or stream."""
    service = "/alignserve.v1.AlignService"
    embed: Any = live.channel.unary_unary(f"{service}/EmbedText")
    infer: Any = live.channel.stream_stream(f"{service}/StreamInfer")
    malformed = b"\xff" * _MB
    watch = live.watch_memory()

    codes = {
        await _code(infer(iter([malformed])).read() if by_stream else embed(malformed)) for _ in range(200)
    }

    assert codes == {"INVALID_ARGUMENT"}
    assert watch.growth < _MOST_GROWTH


_NO_MESSAGE = b"\xff" * _MB
_ENDS_STREAMS = {
    "unknown order": (
        "/alignserve.v1.AlignService/StreamInfer",
        pb.StreamInferRequest(
            stream_options=pb.StreamOptions(delivery_order=77),  # type: ignore[arg-type]  # an open enum
            embed_image=pb.EmbedImageRequest(images=[pb.Image(content=_NO_MESSAGE)]),
        ).SerializeToString(),
    ),
    "malformed watch": ("/grpc.health.v1.Health/Watch", _NO_MESSAGE),
    "malformed reflection": (
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        _NO_MESSAGE,
    ),
}


@pytest.mark.parametrize("name", _ENDS_STREAMS)
async def test_a_message_that_ends_its_stream_leaves_nothing_behind(live: LiveServer, name: str) -> None:
    """This holds for the streams of every service."""
    method, message = _ENDS_STREAMS[name]
    watch = live.watch_memory()

    stream: Any = live.channel.stream_stream(method)
    codes = {await _code(stream(iter([message])).read()) for _ in range(200)}

    assert codes == {"INVALID_ARGUMENT"}
    assert watch.growth < _MOST_GROWTH


async def _refused(live: LiveServer, method: str, requests: Sequence[Any], *, by_stream: bool) -> None:
    if by_stream:
        items = (pb.StreamInferRequest(**{_FIELDS[method]: request}) for request in requests)
        codes = {outcome.code for outcome in await live.stream(items)}
    else:
        codes = {await _code(getattr(live.stub, method)(request)) for request in requests}
    assert codes == {"INVALID_ARGUMENT"}


async def _code(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def test_labels_of_streams_stay_within_the_byte_budget() -> None:
    """Two streams that send as much as they may are not read beyond the budget."""
    flags = ("--max-queue-bytes", str(32 * _MB), "--text-cache-bytes", "0")
    with server_process(*flags, program=_SLOW_MODEL) as server:
        async with connect(server.port) as channel:
            watch = MemoryWatch(server.process.pid)
            streams = [asyncio.ensure_future(_stream_labels(channel, name)) for name in "ab"]
            await asyncio.wait(streams, timeout=3.0)
            growth = watch.growth
            for stream in streams:
                stream.cancel()
            await asyncio.wait(streams)

    assert growth < 300 * _MB


async def _stream_labels(channel: grpc.aio.Channel, name: str) -> None:
    """Sends requests of 7.7 MB of labels that no other request has."""

    async def requests() -> AsyncIterator[pb.StreamInferRequest]:
        for number in range(32):
            labels = [f"{name}{number}-{i}".ljust(7_700, "l") for i in range(1000)]
            classify = pb.ClassifyRequest(images=[pb.Image(content=b"a")], labels=labels, top_k=1)
            yield pb.StreamInferRequest(correlation_id=str(number), classify=classify)

    async for _ in pb_grpc.AlignServiceStub(channel).StreamInfer(requests()):
        pass
