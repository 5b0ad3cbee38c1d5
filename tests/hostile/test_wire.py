"""Whatever arrives at the port, valid calls are answered, and memory stays bounded."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable
from contextlib import ExitStack, suppress
from io import BytesIO
from typing import Any

import grpc
import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from PIL import Image

from tests.hostile.live import GOOD_IMAGE, MAX_DECODING_BYTES, OK, LiveServer, Outcome, outcome_of
from tests.hostile.mutations import with_dimensions
from tests.integration.serving import connect, image_request, text_request
from tests.processes import BIN, server_process

pytestmark = pytest.mark.hostile

_MAX_REQUEST_BYTES = 16 << 20
_SERVICE = "/alignserve.v1.AlignService"
_MALFORMED = Outcome("INVALID_ARGUMENT", "REQUEST_MALFORMED")

# Each kind of RPC, and each service: method, kind, and a valid request.
_METHODS = {
    "EmbedText": (f"{_SERVICE}/EmbedText", "unary_unary", text_request("a")),
    "EmbedImage": (f"{_SERVICE}/EmbedImage", "unary_unary", image_request(GOOD_IMAGE)),
    "Classify": (f"{_SERVICE}/Classify", "unary_unary", pb.ClassifyRequest(labels=["a"])),
    "Compare": (f"{_SERVICE}/Compare", "unary_unary", pb.CompareRequest(pairs=[pb.ImageTextPair(text="a")])),
    "EmbedQuery": (
        f"{_SERVICE}/EmbedQuery",
        "unary_unary",
        pb.EmbedQueryRequest(queries=[pb.ComposedQuery(terms=[pb.QueryTerm(text="a")])]),
    ),
    "StreamInfer": (
        f"{_SERVICE}/StreamInfer",
        "stream_stream",
        pb.StreamInferRequest(correlation_id="a", embed_text=text_request("a")),
    ),
    "Check": (
        "/grpc.health.v1.Health/Check",
        "unary_unary",
        health_pb2.HealthCheckRequest(service=_SERVICE[1:]),
    ),
    "Watch": (
        "/grpc.health.v1.Health/Watch",
        "unary_stream",
        health_pb2.HealthCheckRequest(service=_SERVICE[1:]),
    ),
    **{
        f"ServerReflectionInfo of {version}": (
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            "stream_stream",
            reflection_pb2.ServerReflectionRequest(list_services="services"),
        )
        for version in ("v1", "v1alpha")
    },
}
_NO_MESSAGE = {
    "a length beyond the end": b"\x0a\xff\xff\xff\xff\x07",
    "an endless varint": b"\xff" * 64,
    "field number 0": b"\x00\x00",
    "a group that ends before it began": b"\x0c",
    "wire type 7": b"\x0f\x01",
    "groups a hundred thousand deep": b"\x0b" * 100_000,
    "unknown groups a hundred thousand deep": b"\xfb\x7f" * 100_000,
    "messages of messages": b"\x0a\x7f" * 50_000,
}


async def _first_answer(live: LiveServer, method: str, message: bytes) -> Outcome:
    """Sends raw bytes, and reads only the first response."""
    path, kind, _ = _METHODS[method]
    rpc = getattr(live.channel, kind)(path)(iter([message]) if kind == "stream_stream" else message)
    outcome = await outcome_of(rpc if kind == "unary_unary" else anext(aiter(rpc), None))
    rpc.cancel()
    return outcome


@pytest.mark.parametrize("method", _METHODS)
async def test_invalid_messages_are_refused(live: LiveServer, method: str) -> None:
    """Every kind of RPC gives the same answer."""
    cut = _METHODS[method][2].SerializeToString()[:-1]
    messages = {**_NO_MESSAGE, "cut off": cut}

    outcomes = {name: await _first_answer(live, method, message) for name, message in messages.items()}

    assert outcomes == dict.fromkeys(messages, _MALFORMED)


@pytest.mark.parametrize("count", [25, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.parametrize("method", _METHODS)
async def test_no_bytes_cause_a_server_error(live: LiveServer, method: str, count: int) -> None:
    """Random bytes and damaged messages are refused, or are valid by chance."""
    rng = random.Random(method)
    good = _METHODS[method][2].SerializeToString()
    messages = [rng.randbytes(rng.randrange(1, 64)) for _ in range(count)]
    for _ in range(count):
        damaged = bytearray(good)
        damaged[rng.randrange(min(64, len(good)))] = rng.randrange(256)
        messages.append(bytes(damaged))

    codes = {(await _first_answer(live, method, message)).code for message in messages}

    assert codes <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}


@pytest.mark.parametrize(
    "text", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xed\xb0\x80", b"\xf4\x90\x80\x80"]
)
@pytest.mark.parametrize("method", ["EmbedText", "Classify", "StreamInfer", "Check", "Watch"])
async def test_text_that_is_not_utf_8_is_refused(live: LiveServer, method: str, text: bytes) -> None:
    """Stray bytes, overlong zeros, lone surrogates and code points beyond U+10FFFF."""
    field = {"Classify": b"\x12"}.get(method, b"\x0a")

    outcome = await _first_answer(live, method, field + bytes([len(text)]) + text)

    assert outcome == _MALFORMED


@pytest.mark.parametrize(("method", "megabytes"), [("EmbedImage", 48), ("StreamInfer", 17)])
async def test_a_compressed_bomb_is_refused_within_memory(
    live: LiveServer, method: str, megabytes: int
) -> None:
    """The limit applies to the decompressed size, and at most that much is decompressed."""
    request = image_request(bytes(megabytes << 20))
    memory = live.watch_memory()

    if method == "EmbedImage":
        call: Awaitable[Any] = live.stub.EmbedImage(request, compression=grpc.Compression.Gzip)
    else:
        requests = iter([pb.StreamInferRequest(correlation_id="a", embed_image=request)])
        call = live.stub.StreamInfer(requests, compression=grpc.Compression.Gzip).read()
    outcome = await outcome_of(call)

    assert outcome.code == "RESOURCE_EXHAUSTED"
    assert memory.growth < 2 * _MAX_REQUEST_BYTES


async def test_metadata_of_20_kb_is_refused(live: LiveServer) -> None:
    """gRPC itself refuses it, before any handler runs."""
    call = live.stub.EmbedText(text_request("a"), metadata=[("x-large", "x" * 20_000)])

    assert (await outcome_of(call)).code == "RESOURCE_EXHAUSTED"


def _encoded(file_format: str, side: int = 64) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (side, side)).save(buffer, file_format)
    return buffer.getvalue()


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
async def test_a_pixel_bomb_is_refused_without_allocation(live: LiveServer, file_format: str) -> None:
    """Its header is enough to refuse it, before any pixels are allocated."""
    bomb = with_dimensions(_encoded(file_format), 65_500, 65_500)
    memory = live.watch_memory()

    outcomes = [await outcome_of(live.stub.EmbedImage(image_request(bomb))) for _ in range(20)]

    assert set(outcomes) == {Outcome("INVALID_ARGUMENT", "IMAGE_TOO_LARGE", ("images[0].content",))}
    assert memory.growth < 8 << 20


@pytest.mark.long
async def test_bombs_within_the_limits_are_bounded_by_the_decoding_threads(live: LiveServer) -> None:
    """However many arrive at once, each a few kilobytes that decode to 75 million."""
    bomb = image_request(_encoded("PNG", side=5000))
    memory = live.watch_memory()

    outcomes = await asyncio.gather(*(outcome_of(live.stub.EmbedImage(bomb)) for _ in range(8)))

    assert outcomes == [OK] * 8
    assert memory.growth < MAX_DECODING_BYTES


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Builds an HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _header(name: bytes, value: bytes) -> bytes:
    """Encodes an HTTP/2 header literally, without the dynamic table."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _CONTINUATION = 0, 1, 3, 4, 6, 9
_START = _PREFACE + _frame(_SETTINGS, 0, 0)
_CALL = b"".join(
    [
        _header(b":method", b"POST"),
        _header(b":scheme", b"http"),
        _header(b":path", f"{_SERVICE}/EmbedText".encode()),
        _header(b":authority", b"localhost"),
        _header(b"te", b"trailers"),
        _header(b"content-type", b"application/grpc"),
    ]
)
_TEXT = text_request("a").SerializeToString()
_END_HEADERS = 4
_REFUSED_BY_CLIENT = struct.pack(">I", 8)  # CANCEL


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512),
        random.Random(0).randbytes(1 << 20),
        b"\0" * (1 << 20),
        _PREFACE[:-1],
        _PREFACE + random.Random(1).randbytes(1 << 16),
        _START + _frame(_HEADERS, _END_HEADERS, 1, random.Random(2).randbytes(4096)),
        _START + b"\xff\xff\xff" + _frame(_DATA, 0, 1)[3:],
        _START + _frame(_SETTINGS, 0, 0) * 20_000,
        _START + _frame(_PING, 0, 0, bytes(8)) * 20_000,
        _START + _frame(_DATA, 0, 1, b"x" * 64) * 1000,
        _START
        + _frame(_HEADERS, 0, 1, _CALL)
        + _frame(_CONTINUATION, 0, 1, _header(b"x", b"y" * 99)) * 20_000,
        _START
        + b"".join(
            _frame(_HEADERS, _END_HEADERS, stream, _CALL) + _frame(_RESET, 0, stream, _REFUSED_BY_CLIENT)
            for stream in range(1, 20_001, 2)
        ),
        _START
        + _frame(_HEADERS, _END_HEADERS, 1, _CALL)
        + _frame(_DATA, 1, 1, struct.pack(">BI", 1, len(_TEXT)) + _TEXT),
        _START + _frame(_HEADERS, _END_HEADERS, 1, _CALL) + _frame(_DATA, 1, 1, b"\0\xff\xff\xff\xff"),
    ],
    ids=[
        *("HTTP/1.1", "TLS", "random bytes", "zeros", "half a preface", "no frames", "no headers"),
        *("a frame of 16 MB", "settings", "pings", "data of no call", "headers without end"),
        *("rapid resets", "compressed by no codec", "a message of 4 GB"),
    ],
)
async def test_traffic_that_is_not_grpc_has_no_effect(live: LiveServer, sent: bytes) -> None:
    """The connection or its calls end eventually; memory does not grow with the input."""
    memory = live.watch_memory()

    await asyncio.to_thread(_send, live.port, sent)

    assert await live.good_embedding()
    assert memory.growth < 2 * _MAX_REQUEST_BYTES


def _send(port: int, content: bytes) -> None:
    """Sends bytes and reads until the server closes the connection, which it may do at any time."""
    with _connection(port) as connection, suppress(OSError):
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass


def _connection(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30.0)


@pytest.mark.parametrize("greeting", [b"", _START], ids=["silent", "greeted"])
async def test_idle_connections_do_not_block_others(live: LiveServer, greeting: bytes) -> None:
    """Three hundred connections that fall silent do not cost any caller its answer."""
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(_connection(live.port)).sendall(greeting)

        assert await live.good_embedding()


async def test_more_connections_than_the_soft_limit_do_not_block_others() -> None:
    """The server raises its limit of open files as far as it may, whatever it was started with."""
    program = ("sh", "-c", f'ulimit -Sn 128; exec {BIN}/alignserve-server "$@"', "sh")
    with server_process("--checkpoint", "fake", program=program) as server, ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(_connection(server.port))

        async with connect(server.port) as channel:
            await pb_grpc.AlignServiceStub(channel).EmbedText(text_request("a"), timeout=30)


async def test_a_thousand_calls_cancelled_at_once_leave_nothing_behind(live: LiveServer) -> None:
    """They may be at any stage; item counts are checked after every test."""
    calls: list[Any] = [live.stub.EmbedImage(image_request(GOOD_IMAGE)) for _ in range(500)]
    calls += [live.stub.EmbedText(text_request(f"text {number}")) for number in range(500)]
    await calls[0]

    for call in calls:
        call.cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert len(outcomes) == 1000


async def test_streams_that_vanish_leave_nothing_behind(live: LiveServer) -> None:
    """Some have items in flight, some have not sent their first."""

    async def endless() -> AsyncIterator[pb.StreamInferRequest]:
        for number in range(1_000_000):
            yield pb.StreamInferRequest(correlation_id=str(number), embed_image=image_request(GOOD_IMAGE))

    streams = [live.stub.StreamInfer(endless()) for _ in range(50)]
    await streams[0].read()

    for stream in streams:
        stream.cancel()

    assert [await stream.code() for stream in streams] == [grpc.StatusCode.CANCELLED] * 50
