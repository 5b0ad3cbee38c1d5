"""Messages of millions of tiny parts are refused before each part becomes an object."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from alignserve.v1 import align_service_pb2 as pb

from tests.hostile.lag import MAX_LAG_PARSES, TickingServer, ticking_server
from tests.integration.serving import Refusal, refused

pytestmark = pytest.mark.hostile

_BYTES = (16 << 20) - 16  # within the server's limit
_SERVICE = "/alignserve.v1.AlignService"


def _framed(tag: int, message: bytes) -> bytes:
    """Encodes a field with a long message."""
    size, remaining = b"", len(message)
    while remaining > 0x7F:
        size += bytes([remaining & 0x7F | 0x80])
        remaining >>= 7
    return bytes([tag << 3 | 2]) + size + bytes([remaining]) + message


TINY = {
    "images": ("EmbedImage", b"\x0a\0" * (_BYTES // 2)),
    "texts": ("EmbedText", b"\x0a\x01a" * (_BYTES // 3)),
    "pairs": ("Compare", b"\x0a\0" * (_BYTES // 2)),
    "queries": ("EmbedQuery", b"\x0a\0" * (_BYTES // 2)),
    "terms": ("EmbedQuery", _framed(1, b"\x0a\0" * (_BYTES // 2 - 8))),
    "labels": ("Classify", b"\x12\x01a" * (_BYTES // 3)),
    "options": ("EmbedImage", b"\x12\0" * (_BYTES // 2)),
    "contents": ("EmbedImage", _framed(1, b"\x0a\0" * (_BYTES // 2 - 8))),
    "unknown": ("GetModelInfo", b"\x78\0" * (_BYTES // 2)),
    "groups": ("EmbedText", b"\x7b\x7c" * (_BYTES // 2)),
    "an item": ("StreamInfer", _framed(2, b"\x0a\0" * (_BYTES // 2 - 8))),
}


@pytest.fixture(scope="module")
def ticking() -> Iterator[TickingServer]:
    with ticking_server("--checkpoint", "fake") as ticking:
        yield ticking


@pytest.fixture
async def channel(ticking: TickingServer) -> AsyncIterator[grpc.aio.Channel]:
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(ticking.server.address, options=options) as channel:
        yield channel


async def _refusal_of(channel: grpc.aio.Channel, method: str, message: bytes) -> Refusal:
    async def send() -> None:
        stream: Any = channel.stream_stream(f"{_SERVICE}/{method}")
        async for _ in stream(iter([message])):
            pass

    if method == "StreamInfer":
        return await refused(send())
    call: Any = channel.unary_unary(f"{_SERVICE}/{method}")
    return await refused(call(message))


@pytest.mark.parametrize("name", TINY)
async def test_millions_of_fields_do_not_block_the_event_loop(
    ticking: TickingServer, channel: grpc.aio.Channel, name: str
) -> None:
    """This holds for any fields of two bytes each, known or unknown."""
    seen = []

    async def attack() -> None:
        seen.append(await _refusal_of(channel, *TINY[name]))

    lag = await ticking.least_lag_in_parses(attack, MAX_LAG_PARSES)

    assert lag < MAX_LAG_PARSES
    assert (seen[-1].code, seen[-1].reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BATCH_TOO_LARGE")


async def test_a_slightly_too_large_request_gets_the_field_and_the_limit(channel: grpc.aio.Channel) -> None:
    """Callers that overlooked a limit get the message that helps them."""
    request = pb.EmbedTextRequest(texts=["a text of some length"] * 5000)

    refusal = await _refusal_of(channel, "EmbedText", request.SerializeToString())

    assert (refusal.reason, refusal.fields) == ("BATCH_TOO_LARGE", ["texts"])
