"""Cohere's embeddings: sources, types and errors."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from tests.integration.http.dialects import IMAGE, IMAGE_URI
from tests.integration.http.ports import Shared, in_module_loop, serving

PICTURE = b"picture"


async def embed(client: Any, **body: Any) -> dict[str, Any]:
    """Returns the answer of a request that succeeds."""
    answer = await client.post("/v2/embed", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@in_module_loop
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"texts": ["a cat", "a dog"]}, ["a cat", "a dog"]),
        ({"texts": ["data:image/png;base64,AAAA"]}, ["data:image/png;base64,AAAA"]),
        ({"images": [IMAGE_URI, IMAGE]}, [PICTURE, PICTURE]),
        (
            {
                "inputs": [
                    {"content": [{"type": "text", "text": "a cat"}]},
                    {"content": [{"type": "image_url", "image_url": {"url": IMAGE_URI}}]},
                ],
                "texts": None,
            },
            ["a cat", PICTURE],
        ),
    ],
    ids=lambda value: repr(value)[:60],
)
async def test_each_source_is_embedded(
    shared: Shared, body: dict[str, Any], expected: list[str | bytes]
) -> None:
    """Texts come back with the embeddings, as Cohere has it."""
    served, client = shared
    answer = await embed(client, model="fake", input_type="search_query", **body)

    vectors = [served.encoder.embedding_of(each) for each in expected]
    np.testing.assert_allclose(answer["embeddings"]["float"], vectors, atol=1e-6)
    assert answer["texts"] == [each for each in expected if isinstance(each, str)]
    assert answer["meta"]["billed_units"]["images"] == expected.count(PICTURE)


async def test_embeddings_come_in_each_type() -> None:
    """Quantized ones are those of gRPC, with the offsets that Cohere has."""
    types = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    async with serving() as (served, client):
        found = (await embed(client, texts=["a cat"], embedding_types=types))["embeddings"]

    vector = served.encoder.embedding_of("a cat")
    int8 = np.rint(vector / (np.abs(vector).max() / 127)).astype(int)
    bits = np.packbits(vector > 0)
    assert list(found) == types
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(found["base64"][0]), "<f4"), vector, atol=1e-6)
    assert found["int8"] == [int8.tolist()]
    assert found["uint8"] == [(int8 + 128).tolist()]
    assert found["ubinary"] == [bits.tolist()]
    assert found["binary"] == [(bits.astype(int) - 128).tolist()]


async def test_long_texts_are_cut_unless_told_otherwise() -> None:
    """Cohere's default is END."""
    async with serving() as (_, client):
        await embed(client, texts=["w " * 100])
        refused = await client.post("/v2/embed", json={"texts": ["a", "w " * 100], "truncate": "NONE"})

    assert (refused.status_code, refused.json()["reason"]) == (400, "TEXT_TOO_LONG")
    assert refused.json()["message"].startswith("texts[1]: ")


@in_module_loop
@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "texts: is missing"),
        ({"texts": []}, 400, "texts: no inputs"),
        ({"texts": ["a"], "images": [IMAGE]}, 400, "images: is given along with texts"),
        ({"texts": "a"}, 400, "texts: is a string; send a list"),
        ({"images": ["https://a/b.png"]}, 400, "images[0]: https URLs are not fetched"),
        ({"inputs": [{"content": []}]}, 400, "inputs[0]: has no parts"),
        (
            {"inputs": [{"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
            400,
            "inputs[0]: has 2 parts",
        ),
        ({"texts": ["a"], "embedding_types": ["float", "float64"]}, 400, "embedding_types[1]: 'float64'"),
        ({"texts": ["a"], "output_dimension": 256}, 400, "output_dimension: 256 dimensions"),
        ({"texts": ["a"], "truncate": "START"}, 400, "truncate: 'START' is not supported"),
        ({"texts": ["a"], "model": "embed-v4.0"}, 404, "model: 'embed-v4.0' is not served"),
    ],
    ids=lambda value: repr(value)[:60],
)
async def test_refusals_name_the_field_of_the_caller(
    shared: Shared, body: dict[str, Any], status: int, message: str
) -> None:
    """In the message; the client raises by status."""
    _, client = shared
    answer = await client.post("/v2/embed", json=body)

    assert answer.status_code == status
    assert answer.json()["message"].startswith(message)
