"""The Connect protocol: JSON and protobuf, POST and GET, and errors with readable details."""

from __future__ import annotations

from base64 import b64decode, b64encode, urlsafe_b64encode
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from alignserve.v1 import align_service_pb2 as pb
from google.rpc import error_details_pb2

from tests.integration.http.ports import serving

SERVICE = "/alignserve.v1.AlignService"
PICTURE = b"\xfb\xff\xfe picture"  # any bytes are an image to the fake encoder
PROTO = {"content-type": "application/proto"}


def reason_of(answer: httpx.Response) -> str:
    """Returns the reason in an error's details."""
    (info,) = [each for each in answer.json()["details"] if each["type"] == "google.rpc.ErrorInfo"]
    return str(info["debug"]["reason"])


async def test_texts_are_embedded_by_json() -> None:
    """The numbers are those of the model, with no more digits than float32 needs."""
    async with serving() as (served, client):
        answer = await client.post(f"{SERVICE}/EmbedText", json={"texts": ["a cat", "a dog"]})
        expected = [served.encoder.embedding_of(text) for text in ("a cat", "a dog")]

    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    vectors = [embedding["values"] for embedding in answer.json()["embeddings"]]
    np.testing.assert_array_equal(np.array(vectors, np.float32), np.array(expected, np.float32))
    assert max(len(repr(value)) for value in vectors[0]) <= 15
    assert answer.json()["tokenizations"][0]["truncated"] is False


async def test_protobuf_is_answered_with_protobuf() -> None:
    """It is the encoding of generated clients."""
    request = pb.EmbedTextRequest(texts=["a cat"])
    async with serving() as (served, client):
        answer = await client.post(f"{SERVICE}/EmbedText", content=request.SerializeToString(), headers=PROTO)
        expected = served.encoder.embedding_of("a cat")

    assert answer.headers["content-type"] == "application/proto"
    response = pb.EmbedTextResponse.FromString(answer.content)
    np.testing.assert_allclose(response.embeddings[0].values, expected, atol=1e-6)


@pytest.mark.parametrize("base64", [True, False])
async def test_a_method_without_side_effects_can_be_called_by_get(base64: bool) -> None:
    """Caches and browsers like it."""
    message = b'{"texts":["a cat"]}'
    query = {"encoding": "json", "connect": "v1", "message": message.decode()}
    if base64:
        query |= {"message": urlsafe_b64encode(message).decode().rstrip("="), "base64": "1"}
    async with serving() as (_, client):
        answer = await client.get(f"{SERVICE}/EmbedText", params=query)

    assert len(answer.json()["embeddings"]) == 1


async def test_a_message_in_a_query_may_be_any_bytes() -> None:
    """Bytes that are not UTF-8 are not replaced, which would change the message."""
    request = pb.EmbedTextRequest(texts=["a" * 200]).SerializeToString()  # the length takes a byte of 0xc8
    async with serving() as (_, client):
        proto = await client.get(f"{SERVICE}/EmbedText?encoding=proto&message={quote(request)}")
        json = await client.get(
            f"{SERVICE}/EmbedText?encoding=json&message=%7B%22texts%22%3A%5B%22%E4%22%5D%7D"
        )

    assert (proto.status_code, json.status_code) == (200, 400)


async def test_images_may_have_either_base64_alphabet() -> None:
    """Python's two encoders differ, and some encoders leave out the padding."""
    forms = [b64encode(PICTURE), urlsafe_b64encode(PICTURE), b64encode(PICTURE).rstrip(b"=")]
    images = [{"content": form.decode()} for form in forms]
    async with serving() as (_, client):
        answer = await client.post(f"{SERVICE}/EmbedImage", json={"images": images})

    vectors = [embedding["values"] for embedding in answer.json()["embeddings"]]
    assert vectors[0] == vectors[1] == vectors[2]


async def test_fields_may_be_null_unknown_or_named_as_in_the_proto() -> None:
    """Go sends an empty list as null; JSON names are in camel case."""
    request = {
        "images": [{"content": b64encode(PICTURE).decode()}],
        "labels": ["cat", "dog"],
        "promptTemplates": None,
        "top_k": "1",
        "from_the_future": {"a": 1},
    }
    async with serving() as (_, client):
        answer = await client.post(f"{SERVICE}/Classify", json=request)

    (result,) = answer.json()["results"]
    assert len(result["classifications"]) == 1
    assert set(result["classifications"][0]) == {"label", "labelIndex", "score", "similarity", "logit"}


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"texts": "a cat"}, ["texts"]),
        ({"texts": ["a", 1]}, ["texts[1]"]),
        ({"texts": [None]}, ["texts[0]"]),
        ({"texts": ["a"], "embeddingOptions": {"format": "FLOAT"}}, ["embedding_options.format"]),
        ({"texts": ["a"], "embeddingOptions": []}, ["embedding_options"]),
        ({"texts": ["a"], "truncate": 1}, ["truncate"]),
        ({"texts": ["a"], "includeStats": True, "include_stats": False}, ["include_stats"]),
        ([], []),
        ("texts", []),
    ],
)
async def test_a_value_of_the_wrong_type_is_refused_by_field(body: Any, fields: list[str]) -> None:
    """Also a name of an enum value that does not exist, which would otherwise count as the default."""
    async with serving() as (_, client):
        answer = await client.post(f"{SERVICE}/EmbedText", json=body)

    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument")
    assert reason_of(answer) == "REQUEST_MALFORMED"
    violations = [
        violation["field"]
        for detail in answer.json()["details"]
        if detail["type"] == "google.rpc.BadRequest"
        for violation in detail["debug"]["fieldViolations"]
    ]
    assert violations == fields


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"texts": ["\\ud800"]}',
        b'{"texts": ["\xff"]}',
        b'{"texts": [NaN]}',
        b'{"topK": 1' + b"0" * 5000 + b"}",
        b'{"topK": 1e999}',
        b'{"texts": ["a"]} x',
        b"\x1f\x8b",
    ],
)
async def test_what_is_no_json_is_refused_and_never_fails(body: bytes) -> None:
    """Clients repeat a call that ends with 500."""
    async with serving() as (_, client):
        answer = await client.post(f"{SERVICE}/Classify", content=body)

    assert answer.status_code == 400
    assert reason_of(answer) in ("REQUEST_MALFORMED", "BATCH_TOO_LARGE")


async def test_details_can_be_read_by_programs_and_people() -> None:
    """`value` is the message, and `debug` the same as JSON."""
    async with serving() as (_, client):
        answer = await client.post(f"{SERVICE}/EmbedText", json={"texts": ["a", " "]})

    error = answer.json()
    assert (answer.status_code, error["code"]) == (400, "invalid_argument")
    info, bad = error["details"]
    decoded = error_details_pb2.ErrorInfo.FromString(b64decode(info["value"] + "=="))
    assert decoded.reason == info["debug"]["reason"] == "TEXT_EMPTY"
    assert bad["debug"]["fieldViolations"][0]["field"] == "texts[1]"


async def test_an_unknown_method_is_unimplemented() -> None:
    """As gRPC says it; the status is that of HTTP."""
    async with serving() as (_, client):
        answer = await client.post(f"{SERVICE}/Embed", json={})

    assert (answer.status_code, answer.json()["code"], reason_of(answer)) == (
        404,
        "unimplemented",
        "PATH_UNKNOWN",
    )


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"connect-protocol-version": "2"}, "ARGUMENT_INVALID"),
        ({"connect-timeout-ms": "soon"}, "ARGUMENT_INVALID"),
        ({"connect-timeout-ms": "99999999999"}, "ARGUMENT_INVALID"),
        ({"alignserve-priority": "urgent"}, "ARGUMENT_INVALID"),
        ({"alignserve-max-response-bytes": "all"}, "ARGUMENT_INVALID"),
        ({"alignserve-max-response-bytes": "10"}, "BATCH_TOO_LARGE"),
    ],
)
async def test_malformed_headers_are_refused(headers: dict[str, str], reason: str) -> None:
    """A limit that was mistyped must not silently be none."""
    async with serving() as (_, client):
        answer = await client.post(f"{SERVICE}/EmbedText", json={"texts": ["a"]}, headers=headers)

    assert (answer.status_code, reason_of(answer)) == (400, reason)


async def test_what_was_sent_is_cut_before_it_is_repeated() -> None:
    """An error must fit into headers and logs."""
    body = {"texts": ["a"], "embeddingOptions": {"format": "x" * 100_000}}
    async with serving() as (_, client):
        answer = await client.post(f"{SERVICE}/EmbedText", json=body)

    assert answer.status_code == 400
    assert len(answer.content) < 3000
