"""OpenAI's endpoints: every form of input, formats, order, splitting and errors."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alignserve_server.access.keys import Scope, changed_keys, new_key

from tests.integration.http.dialects import IMAGE, IMAGE_URI
from tests.integration.http.ports import Shared, in_module_loop, serving
from tests.integration.serving import until

PICTURE = b"picture"


async def embeddings(client: Any, **body: Any) -> list[Any]:
    """Returns the embeddings of a request that succeeds."""
    answer = await client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [each["index"] for each in data] == list(range(len(data)))
    return [each["embedding"] for each in data]


def _message(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


FORMS: list[tuple[dict[str, Any], list[str | bytes]]] = [
    ({"input": "a cat"}, ["a cat"]),
    ({"input": ["a cat", "a dog"]}, ["a cat", "a dog"]),
    ({"input": ["a cat", IMAGE_URI, "a dog"]}, ["a cat", PICTURE, "a dog"]),
    ({"input": "data: not an image"}, ["data: not an image"]),
    ({"input": "https://example.com/cat.png"}, ["https://example.com/cat.png"]),
    ({"input": IMAGE_URI, "modality": "image"}, [PICTURE]),
    ({"input": [IMAGE], "modality": "image"}, [PICTURE]),
    ({"input": [IMAGE_URI[:40]], "modality": "text"}, [IMAGE_URI[:40]]),
    ({"input": [{"text": "a cat"}, {"image": IMAGE}, {"image": IMAGE_URI}]}, ["a cat", PICTURE, PICTURE]),
    ({"input": [{"image_url": {"url": IMAGE_URI}, "text": None}]}, [PICTURE]),
    ({"input": [{"content": [{"type": "image_url", "image_url": {"url": IMAGE_URI}}]}]}, [PICTURE]),
    (_message({"type": "image_url", "image_url": {"url": IMAGE_URI}}), [PICTURE]),
    (_message({"type": "image_url", "image_url": IMAGE_URI}), [PICTURE]),
    (_message({"type": "input_image", "image_url": IMAGE_URI}), [PICTURE]),
    (_message({"type": "text", "text": "a cat"}), ["a cat"]),
    ({"messages": [{"role": "user", "content": "a cat"}], "input": None}, ["a cat"]),
]


@in_module_loop
@pytest.mark.parametrize(("body", "expected"), FORMS, ids=lambda value: repr(value)[:60])
async def test_inputs_are_read_in_every_form(
    shared: Shared, body: dict[str, Any], expected: list[str | bytes]
) -> None:
    """Those of OpenAI, NVIDIA NIM, infinity, Jina and vLLM; the embeddings are those of gRPC."""
    served, client = shared
    found = await embeddings(client, **body)

    np.testing.assert_allclose(found, [served.encoder.embedding_of(each) for each in expected], atol=1e-6)


async def test_base64_is_of_little_endian_floats() -> None:
    """The official client asks for it unless told otherwise."""
    async with serving() as (served, client):
        (encoded,) = await embeddings(client, input="a cat", encoding_format="base64", model=None, user=None)

    values = np.frombuffer(base64.b64decode(encoded), "<f4")
    np.testing.assert_allclose(values, served.encoder.embedding_of("a cat"), atol=1e-6)


async def test_thousands_of_inputs_are_split_and_answered_in_order() -> None:
    """The official client sends up to 2,048 inputs a call; here texts and images take turns."""
    inputs = [f"text {number}" if number % 3 else _uri(number) for number in range(2048)]
    async with serving(max_client_batch_size=16) as (served, client):
        answer = await client.post("/v1/embeddings", json={"input": inputs})

    assert answer.status_code == 200
    encoder = served.encoder
    expected = [
        encoder.embedding_of(f"text {number}" if number % 3 else b"%d" % number) for number in range(2048)
    ]
    np.testing.assert_allclose([each["embedding"] for each in answer.json()["data"]], expected, atol=1e-6)
    tokens = sum(4 for number in range(2048) if number % 3)  # two words, and two special tokens
    assert answer.json()["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def _uri(number: int) -> str:
    return "data:image/png;base64," + base64.b64encode(b"%d" % number).decode()


async def test_more_inputs_than_openai_allows_are_refused_with_the_limit() -> None:
    """The client can then send fewer."""
    async with serving() as (_, client):
        answer = await client.post("/v1/embeddings", json={"input": ["a"] * 2049})

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "batch_too_large", "input")
    assert error["message"] == "input: 2049 inputs, limit 2048; send fewer per request"


async def test_an_answer_larger_than_the_limit_is_refused_before_the_work() -> None:
    """Here 100 embeddings could take more than 4 kB."""
    async with serving(max_response_bytes=4000) as (served, client):
        answer = await client.post("/v1/embeddings", json={"input": ["a"] * 100})

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "batch_too_large")
    assert served.encoder.batches == []


async def test_the_first_error_cancels_the_rest() -> None:
    """The position in the error is that of the whole request."""
    inputs = [f"text {number}" for number in range(100)]
    inputs[13] = " "
    async with serving(max_client_batch_size=4) as (served, client):
        answer = await client.post("/v1/embeddings", json={"input": inputs})
        await until(lambda: served.items("text")["in_flight"] == 0)

        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input[13]")
        assert served.items("text")["accepted"] < 40


async def test_later_parts_wait_for_room_in_the_queue() -> None:
    """A request of more items than the queue holds is served."""
    async with serving(max_client_batch_size=4, max_queue_size=8) as (_, client):
        found = await embeddings(client, input=[f"text {number}" for number in range(200)])

    assert len(found) == 200


async def test_each_part_counts_against_the_quota(tmp_path: Path) -> None:
    """A call of 4 parts costs what 4 calls cost: after two of them, 8 of 8 requests are used."""
    path = tmp_path / "keys.json"
    with changed_keys(path) as keys:
        key, keys["search"] = new_key("search", frozenset({Scope.EMBED}), max_requests_per_second=8)
    async with serving(api_keys_file=path, max_client_batch_size=2) as (_, client):
        client.headers["authorization"] = f"Bearer {key}"
        statuses = [
            (await client.post("/v1/embeddings", json={"input": list("abcdefgh")})).status_code
            for _ in range(2)
        ]
        refused = [(await client.post("/v1/embeddings", json={"input": "a"})).status_code for _ in range(3)]

    assert statuses == [200, 200]
    assert 429 in refused


REFUSED: list[tuple[dict[str, Any], str | None, str, str]] = [
    ({}, "input", "request_empty", "is missing"),
    ({"input": None}, "input", "request_empty", "is missing"),
    ({"input": []}, "input", "request_empty", "no inputs"),
    ({"input": ""}, "input", "text_empty", "empty"),
    ({"input": ["a", " ", "b", ""]}, "input[1]", "text_empty", "and 1 more"),
    ({"input": ["a", "w " * 100]}, "input[1]", "text_too_long", "limit 64"),
    ({"input": [1, 2, 3]}, "input[0]", "argument_invalid", "check_embedding_ctx_length=False"),
    ({"input": [[1, 2], [3]]}, "input[0]", "argument_invalid", "check_embedding_ctx_length=False"),
    ({"input": ["a", None]}, "input[1]", "argument_invalid", "is null"),
    ({"input": ["a", True]}, "input[1]", "argument_invalid", "is a boolean"),
    ({"input": {"other": "a"}}, "input", "argument_invalid", "neither text nor image"),
    ({"input": [{"text": "a", "image": IMAGE}]}, "input[0]", "argument_invalid", "EmbedQuery"),
    ({"input": ["a", "data:text/plain;base64,aGk="]}, "input[1]", "image_unreadable", "text/plain"),
    ({"input": ["data:image/png,abc"]}, "input[0]", "image_unreadable", "not in base64"),
    ({"input": ["data:image/png;base64,a"]}, "input[0]", "image_unreadable", "not valid base64"),
    ({"input": ["data:image/png;base64,"]}, "input[0]", "request_empty", "no bytes"),
    ({"input": ["data:image/png;base64,YnJva2Vu"]}, "input[0]", "image_unreadable", "broken"),
    ({"input": [{"image": "https://a/b.png"}]}, "input[0].image", "argument_invalid", "not fetched"),
    ({"input": ["https://a/b.png"], "modality": "image"}, "input[0]", "argument_invalid", "not fetched"),
    ({"input": [{"image": {"src": IMAGE}}]}, "input[0].image.url", "argument_invalid", "data URI"),
    ({"input": "a", "modality": "audio"}, "modality", "argument_invalid", "'audio' is unknown"),
    ({"input": "a", "encoding_format": "int8"}, "encoding_format", "argument_invalid", "'int8' is unknown"),
    ({"input": "a", "encoding_format": 1}, "encoding_format", "argument_invalid", "send a string"),
    ({"input": "a", "dimensions": 4}, "dimensions", "argument_invalid", "the model has 8"),
    ({"input": "a", "truncate": "START"}, "truncate", "argument_invalid", "send NONE or END"),
    ({"input": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens", "argument_invalid", "send -1"),
    ({"input": "a", "model": "text-embedding-3-small"}, "model", "model_not_found", "send 'fake'"),
    ({"input": "a", "messages": [{"content": "a"}]}, "input", "argument_invalid", "send one of them"),
    ({"messages": []}, "messages", "argument_invalid", "has no parts"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "request_empty", "is missing"),
    ({"messages": [{"content": []}]}, "messages[0].content", "argument_invalid", "has no parts"),
    ({"messages": [{"content": "a"}, {"content": "b"}]}, "messages", "argument_invalid", "EmbedQuery"),
    (
        _message({"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": IMAGE_URI}}),
        "messages",
        "argument_invalid",
        "EmbedQuery",
    ),
    (
        _message({"type": "image_url", "image_url": {"url": "http://a/b.png"}}),
        "messages[0].content[0].image_url.url",
        "argument_invalid",
        "not fetched",
    ),
    (_message({"type": "input_audio"}), "messages[0].content[0].type", "argument_invalid", "unknown"),
    (_message({"type": "text"}), "messages[0].content[0].text", "argument_invalid", "is missing"),
]  # fmt: skip


@in_module_loop
@pytest.mark.parametrize(("body", "param", "code", "message"), REFUSED, ids=lambda value: repr(value)[:60])
async def test_refusals_name_the_field_of_the_caller(
    shared: Shared, body: dict[str, Any], param: str | None, code: str, message: str
) -> None:
    """`param` is the field, `code` the reason, and the message says what to do."""
    _, client = shared
    answer = await client.post("/v1/embeddings", json=body)

    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (
        404 if code == "model_not_found" else 400,
        param,
        code,
    )
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


async def test_dimensions_of_the_model_are_accepted() -> None:
    """Tools that always send the dimension work."""
    async with serving() as (_, client):
        assert len(await embeddings(client, input="a", dimensions=8, output_dimension=8.0)) == 1


async def test_the_defaults_of_infinity_are_not_given() -> None:
    """Its client sends them with each request."""
    async with serving() as (_, client):
        found = await embeddings(client, input="a", dimensions=0, model="default/not-specified", user=None)

    assert len(found) == 1


@in_module_loop
@pytest.mark.parametrize(
    "option", [{"truncate": True}, {"truncate": "END"}, {"truncation": True}, {"truncate_prompt_tokens": -1}]
)
async def test_long_texts_are_cut_if_asked_for(shared: Shared, option: dict[str, Any]) -> None:
    """By the name of any of the servers whose clients use this endpoint."""
    _, client = shared
    assert len(await embeddings(client, input="w " * 100, **option)) == 1


@in_module_loop
@pytest.mark.parametrize("name", [None, "", "fake", "FAKE"])
async def test_the_model_may_be_named(shared: Shared, name: str | None) -> None:
    """By its id in any case, or not at all."""
    _, client = shared
    assert len(await embeddings(client, input="a", model=name)) == 1


async def test_models_are_listed_and_described() -> None:
    """Tools ask for them before they embed anything."""
    async with serving() as (_, client):
        listed = (await client.get("/v1/models")).json()
        described = (await client.get("/v1/models/fake")).json()
        unknown = await client.get("/v1/models/text-embedding-3-small")
        unversioned = (await client.get("/models")).json()

    assert listed == unversioned == {"object": "list", "data": [described]}
    assert (described["id"], described["object"]) == ("fake", "model")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


async def test_megabytes_of_base64_are_decoded() -> None:
    """From a thread, a slice at a time."""
    content = bytes(range(256)) * 20_000
    uri = "data:image/png;base64," + base64.b64encode(content).decode()
    async with serving() as (served, client):
        (found,) = await embeddings(client, input=[uri])

    np.testing.assert_allclose(found, served.encoder.embedding_of(content), atol=1e-6)


async def test_a_client_that_leaves_cancels_its_parts() -> None:
    """Parts that have not started never do, and the call counts as cancelled."""
    labels = {"grpc_type": "unary", "grpc_service": "openai", "grpc_method": "embeddings"}
    async with serving(max_client_batch_size=4) as (served, client):
        served.encoder.gate.clear()
        call = asyncio.ensure_future(client.post("/v1/embeddings", json={"input": list("abcdefghijkl")}))
        await until(lambda: served.items("text")["in_flight"] == 8)

        call.cancel()

        cancelled = {**labels, "grpc_code": "CANCELLED"}
        await until(lambda: served.sample("grpc_server_handled_total", **cancelled) == 1)
        assert served.items("text")["accepted"] == 8
