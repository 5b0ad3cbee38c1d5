"""StreamInfer by the Connect protocol over HTTP/1.1."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx
import pytest
from alignserve.v1 import align_service_pb2 as pb

from tests.integration.http.ports import dialed, serving
from tests.integration.serving import until

PATH = "/alignserve.v1.AlignService/StreamInfer"
JSON, PROTO = {"content-type": "application/connect+json"}, {"content-type": "application/connect+proto"}


def framed(data: bytes, flags: int = 0) -> bytes:
    """Returns an envelope."""
    return struct.pack(">BI", flags, len(data)) + data


def item(number: int, text: str = "a cat") -> bytes:
    """Returns an item in its envelope, as JSON."""
    return framed(json.dumps({"correlationId": str(number), "embedText": {"texts": [text]}}).encode())


def read(body: bytes) -> tuple[list[Any], dict[str, Any]]:
    """Returns the messages of an answer, and the one that ends it."""
    found: list[tuple[int, Any]] = []
    while body:
        flags, size = struct.unpack_from(">BI", body)
        found.append((flags, json.loads(body[5 : 5 + size])))
        body = body[5 + size :]
    (*messages, (flags, end)) = found
    assert flags == 2
    return [message for _, message in messages], end


async def streamed(client: httpx.AsyncClient, items: Iterable[bytes], **headers: str) -> httpx.Response:
    """Sends items, each in a chunk."""

    async def chunks() -> AsyncIterator[bytes]:
        for each in items:
            yield each

    return await client.post(PATH, content=chunks(), headers={**JSON, **headers})


async def test_items_are_answered_by_their_ids() -> None:
    """An item that fails does not end the stream, and its error is readable."""
    async with serving() as (_, client):
        answer = await streamed(client, [item(1), item(2, " "), item(3)])

    messages, end = read(answer.content)
    assert (answer.status_code, answer.headers["content-type"], end) == (200, JSON["content-type"], {})
    by_id = {message["correlationId"]: message for message in messages}
    assert set(by_id) == {"1", "2", "3"}
    assert len(by_id["1"]["embedText"]["embeddings"]) == 1
    details = by_id["2"]["error"]["details"]
    assert details[0]["@type"].endswith("google.rpc.ErrorInfo")
    assert details[0]["reason"] == "TEXT_EMPTY"


async def test_protobuf_is_answered_with_protobuf() -> None:
    """It is the encoding of generated clients."""
    request = pb.StreamInferRequest(correlation_id="1", embed_text=pb.EmbedTextRequest(texts=["a cat"]))
    async with serving() as (_, client):
        answer = await client.post(PATH, content=framed(request.SerializeToString()), headers=PROTO)

    flags, size = struct.unpack_from(">BI", answer.content)
    response = pb.StreamInferResponse.FromString(answer.content[5 : 5 + size])
    assert (flags, response.correlation_id, len(response.embed_text.embeddings)) == (0, "1", 1)
    assert answer.content[5 + size :] == framed(b"{}", 2)


async def test_a_client_that_sends_everything_first_is_answered() -> None:
    """Its items may be many more than are in flight, and nothing is read before the last one is sent."""
    async with serving(max_stream_in_flight=2) as (_, client):
        answer = await streamed(client, [item(number) for number in range(500)])

    messages, end = read(answer.content)
    assert (len(messages), end) == (500, {})


async def test_an_answer_can_come_before_the_next_item_is_sent() -> None:
    """For clients that can read while they write."""
    async with serving() as (served, _), dialed(served) as wire:
        head = f"POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: {JSON['content-type']}\r\n"
        wire.writer.write(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        for number in range(3):
            data = item(number)
            wire.writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            if number == 0:
                await wire.reader.readuntil(b"\r\n\r\n")
            size = int(await wire.reader.readline(), 16)
            message = (await wire.reader.readexactly(size + 2))[5:-2]
            assert json.loads(message)["correlationId"] == str(number)


@pytest.mark.parametrize(
    ("items", "headers", "code", "reason"),
    [
        ([item(1)[:-1]], {}, "invalid_argument", "REQUEST_MALFORMED"),
        ([framed(b"{")], {}, "invalid_argument", "REQUEST_MALFORMED"),
        ([framed(b"x", 1)], {}, "unimplemented", "COMPRESSION_UNSUPPORTED"),
        ([framed(b"x", 8)], {}, "invalid_argument", "REQUEST_MALFORMED"),
        ([item(1)], {"content-encoding": "gzip"}, "unimplemented", "COMPRESSION_UNSUPPORTED"),
        ([item(1)], {"connect-timeout-ms": "-1"}, "invalid_argument", "ARGUMENT_INVALID"),
        ([item(1)], {"connect-protocol-version": "0"}, "invalid_argument", "ARGUMENT_INVALID"),
    ],
)
async def test_what_is_malformed_ends_the_stream(
    items: list[bytes], headers: dict[str, str], code: str, reason: str
) -> None:
    """The error is the last message, and the status 200, as the protocol has it."""
    async with serving() as (_, client):
        answer = await streamed(client, items, **headers)

    _, end = read(answer.content)
    assert (answer.status_code, end["error"]["code"]) == (200, code)
    assert end["error"]["details"][0]["debug"]["reason"] == reason


async def test_a_stream_has_at_most_the_size_of_a_request() -> None:
    """More ends it with an error."""
    async with serving(max_request_bytes=4000, max_image_bytes=4000) as (_, client):
        answer = await client.post(PATH, content=item(1) + item(2, "a" * 4000), headers=JSON)

    _, end = read(answer.content)
    assert end["error"]["details"][0]["debug"]["reason"] == "REQUEST_TOO_LARGE"


async def test_a_client_that_leaves_leaves_the_queue() -> None:
    """Its items are cancelled."""
    async with serving() as (served, _), dialed(served) as wire:
        served.encoder.gate.clear()
        content = b"".join(item(number) for number in range(10))
        head = f"POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: {JSON['content-type']}\r\n"
        wire.writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        await until(lambda: served.items("text")["accepted"] == 10)

        wire.writer.close()

        labels = {"grpc_type": "bidi_stream", "grpc_service": "connect", "grpc_method": "StreamInfer"}
        await until(lambda: served.sample("grpc_server_handled_total", grpc_code="CANCELLED", **labels) == 1)
        assert served.waiting("text") == 0


@pytest.mark.parametrize(
    ("method", "kind", "status"),
    [("POST", "application/json", 415), ("POST", "", 415), ("GET", "", 405), ("HEAD", "", 405)],
)
async def test_a_request_of_another_type_is_refused_by_its_status(
    method: str, kind: str, status: int
) -> None:
    """Its client cannot read the messages of a stream."""
    headers = {"content-type": kind} if kind else {}
    async with serving() as (_, client):
        answer = await client.request(method, PATH, content=b"{}" * (method == "POST"), headers=headers)

    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert method == "HEAD" or "code" in answer.json()
