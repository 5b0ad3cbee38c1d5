"""What is left of calls that failed: nothing, even if the garbage collector never runs."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import grpc
import pytest
from alignserve.v1 import align_service_pb2 as pb

from tests.hostile.live import LiveServer, Outcome, outcome_of
from tests.integration.serving import connect, image_request, text_request
from tests.processes import server_process

pytestmark = pytest.mark.hostile

_WITHOUT_COLLECTOR = "import gc; gc.disable(); from alignserve_server.cli import main; main()"
_CALLS = 300
_LEFT_BYTES = 60 << 20  # a tenth of a megabyte a call is the allocator's; each request has one megabyte
_BLANK = text_request(*[" " * 30_000] * 33)
_BROKEN = image_request(b"broken" + bytes(1_000_000))


@pytest.fixture
async def live() -> AsyncIterator[LiveServer]:
    """A server of its own, whose garbage collector is off."""
    flags = ("--checkpoint", "fake")
    with server_process(*flags, program=(sys.executable, "-c", _WITHOUT_COLLECTOR)) as server:
        async with connect(server.port) as channel:
            yield LiveServer(server, channel)


@pytest.mark.parametrize(
    ("method", "request_", "reason"),
    [
        ("EmbedText", _BLANK, "TEXT_EMPTY"),
        ("EmbedImage", _BROKEN, "IMAGE_UNREADABLE"),
        ("Classify", pb.ClassifyRequest(images=_BROKEN.images, labels=[" "]), "LABELS_INVALID"),
    ],
    ids=["EmbedText", "EmbedImage", "Classify"],
)
async def test_a_refused_call_leaves_nothing_of_its_request(
    live: LiveServer, method: str, request_: object, reason: str
) -> None:
    """gRPC keeps the exception that ends a call, whose frames may know nothing of the request."""
    call = getattr(live.stub, method)
    memory = live.watch_memory()

    outcomes = [await outcome_of(call(request_)) for _ in range(_CALLS)]

    assert {(outcome.code, outcome.reason) for outcome in outcomes} == {("INVALID_ARGUMENT", reason)}
    assert memory.growth < _LEFT_BYTES


async def test_a_malformed_call_leaves_nothing_of_its_request(live: LiveServer) -> None:
    """Nor does what is no message."""
    call = live.channel.unary_unary("/alignserve.v1.AlignService/EmbedText")
    memory = live.watch_memory()

    outcomes = {await outcome_of(call(b"\xff" * 1_000_000)) for _ in range(_CALLS)}

    assert outcomes == {Outcome("INVALID_ARGUMENT", "REQUEST_MALFORMED")}
    assert memory.growth < _LEFT_BYTES


async def test_a_failed_stream_leaves_nothing_of_its_items(live: LiveServer) -> None:
    """Nor do items that fail."""
    memory = live.watch_memory()

    for _ in range(_CALLS // 10):
        outcomes = await live.stream(pb.StreamInferRequest(embed_image=_BROKEN) for _ in range(10))
        assert {outcome.reason for outcome in outcomes} == {"IMAGE_UNREADABLE"}

    assert memory.growth < _LEFT_BYTES


_UNKNOWN_ORDER = pb.StreamInferRequest(embed_image=_BROKEN, stream_options={"delivery_order": 77})  # type: ignore[dict-item]  # an open enum
_NO_MESSAGE = b"\xff" * 1_000_000


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("/alignserve.v1.AlignService/StreamInfer", _NO_MESSAGE),
        ("/alignserve.v1.AlignService/StreamInfer", _UNKNOWN_ORDER.SerializeToString()),
        ("/grpc.health.v1.Health/Watch", _NO_MESSAGE),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", _NO_MESSAGE),
    ],
    ids=["malformed item", "unknown order", "malformed watch", "malformed reflection"],
)
async def test_a_message_that_ends_its_stream_leaves_nothing(
    live: LiveServer, method: str, message: bytes
) -> None:
    """Nor does what ends a stream, of any service."""
    memory = live.watch_memory()

    for _ in range(_CALLS // 3):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(live.channel.stream_stream(method)(iter([message]))))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    assert memory.growth < _LEFT_BYTES
