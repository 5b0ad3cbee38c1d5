"""gRPC-Web on the wire: frames, trailers, base64, and errors."""

from __future__ import annotations

import struct
from base64 import b64decode, b64encode
from urllib.parse import unquote

import httpx
import numpy as np
import pytest
from alignserve.v1 import align_service_pb2 as pb
from google.rpc import status_pb2

from tests.integration.http.ports import serving
from tests.integration.serving import read_status

SERVICE = "/alignserve.v1.AlignService"
BINARY, TEXT = "application/grpc-web+proto", "application/grpc-web-text"


def framed(data: bytes, flags: int = 0) -> bytes:
    """Returns a frame of a message."""
    return struct.pack(">BI", flags, len(data)) + data


def frames(body: bytes) -> list[tuple[int, bytes]]:
    """Returns the flags and the content of each frame."""
    found = []
    while body:
        flags, size = struct.unpack_from(">BI", body)
        found.append((flags, body[5 : 5 + size]))
        body = body[5 + size :]
    return found


REQUEST = framed(pb.EmbedTextRequest(texts=["a cat"]).SerializeToString())


async def called(
    client: httpx.AsyncClient, content: bytes, kind: str = BINARY, **headers: str
) -> httpx.Response:
    """Calls EmbedText."""
    return await client.post(
        f"{SERVICE}/EmbedText", content=content, headers={"content-type": kind, "x-grpc-web": "1", **headers}
    )


@pytest.mark.parametrize("kind", [BINARY, "application/grpc-web", TEXT, f"{TEXT}+proto"])
async def test_a_call_is_answered_with_a_message_and_trailers(kind: str) -> None:
    """Base64 is for clients that cannot read binary answers."""
    is_text = kind.startswith(TEXT)
    async with serving() as (served, client):
        answer = await called(client, b64encode(REQUEST) if is_text else REQUEST, kind)
        expected = served.encoder.embedding_of("a cat")

    assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
    (flags, message), trailers = frames(b64decode(answer.content) if is_text else answer.content)
    assert flags == 0
    np.testing.assert_allclose(
        pb.EmbedTextResponse.FromString(message).embeddings[0].values, expected, atol=1e-6
    )
    assert trailers == (0x80, b"grpc-status: 0\r\n")


async def test_base64_may_be_padded_in_the_middle() -> None:
    """A client encodes each frame, or each piece of one, by itself."""
    async with serving() as (_, client):
        answer = await called(client, b64encode(REQUEST[:4]) + b64encode(REQUEST[4:]), TEXT)

    assert frames(b64decode(answer.content))[1] == (0x80, b"grpc-status: 0\r\n")


async def test_an_error_is_in_the_headers() -> None:
    """With a status of 200, as gRPC has it; the details are those of gRPC."""
    request = pb.EmbedTextRequest(texts=["a", " "])
    async with serving() as (_, client):
        answer = await called(client, framed(request.SerializeToString()))

    assert (answer.status_code, answer.content, answer.headers["grpc-status"]) == (200, b"", "3")
    details = answer.headers["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(b64decode(details + "=" * (-len(details) % 4)))
    _, message, reason, fields, *_ = read_status(status)
    assert (reason, fields) == ("TEXT_EMPTY", ["texts[1]"])
    assert unquote(answer.headers["grpc-message"]) == message


@pytest.mark.parametrize(
    ("content", "kind", "headers", "code"),
    [
        (b"", BINARY, {}, 3),
        (REQUEST + REQUEST, BINARY, {}, 3),
        (REQUEST[:-1], BINARY, {}, 3),
        (framed(b"\xff\xff"), BINARY, {}, 3),
        (framed(b"", 0x01), BINARY, {}, 12),
        (framed(b"", 0x40), BINARY, {}, 3),
        (b"%%%", TEXT, {}, 3),
        (REQUEST, "application/grpc-web+json", {}, 3),
        (REQUEST, BINARY, {"grpc-timeout": "1"}, 3),
        (REQUEST, BINARY, {"grpc-timeout": "123456789m"}, 3),
        (REQUEST, BINARY, {"grpc-timeout": "0n"}, 4),
    ],
)
async def test_what_is_malformed_is_refused(
    content: bytes, kind: str, headers: dict[str, str], code: int
) -> None:
    """Always in the shape of gRPC-Web."""
    async with serving() as (_, client):
        answer = await called(client, content, kind, **headers)

    assert (answer.status_code, answer.headers["grpc-status"]) == (200, str(code))


async def test_a_stream_is_refused_by_name() -> None:
    """The message says what to use instead."""
    async with serving() as (_, client):
        answer = await client.post(
            f"{SERVICE}/StreamInfer", content=framed(b""), headers={"content-type": BINARY}
        )

    assert answer.headers["grpc-status"] == "12"
    assert "use the unary methods" in unquote(answer.headers["grpc-message"])


async def test_an_unknown_method_is_unimplemented() -> None:
    """In the shape of gRPC-Web, although Connect has the same paths."""
    async with serving() as (_, client):
        answer = await client.post(f"{SERVICE}/Embed", content=REQUEST, headers={"content-type": BINARY})

    assert (answer.status_code, answer.headers["grpc-status"]) == (200, "12")
