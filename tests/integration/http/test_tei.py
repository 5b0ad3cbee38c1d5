"""The endpoints of text-embeddings-inference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.integration.http.dialects import IMAGE_URI
from tests.integration.http.ports import serving

# In its OpenAPI document, from which clients are generated.
REQUIRED_INFO = {
    "model_id",
    "served_model_name",
    "model_dtype",
    "model_type",
    "max_concurrent_requests",
    "max_input_length",
    "max_batch_tokens",
    "max_client_batch_size",
    "auto_truncate",
    "tokenization_workers",
    "version",
}


async def test_texts_and_images_are_embedded() -> None:
    """One or several; null options are not given."""
    async with serving() as (served, client):
        one = await client.post("/embed", json={"inputs": "a cat", "truncate": None, "prompt_name": None})
        several = await client.post("/embed", json={"inputs": ["a cat", IMAGE_URI], "truncate": True})

    expected = [served.encoder.embedding_of("a cat"), served.encoder.embedding_of(b"picture")]
    np.testing.assert_allclose(one.json(), expected[:1], atol=1e-6)
    np.testing.assert_allclose(several.json(), expected, atol=1e-6)


async def test_long_texts_are_refused_unless_cut() -> None:
    """With the type of error that the tokenizer has there."""
    async with serving() as (_, client):
        refused = await client.post("/embed", json={"inputs": ["a", "w " * 100]})
        cut = await client.post("/embed", json={"inputs": ["a", "w " * 100], "truncate": True})

    assert (refused.status_code, refused.json()["error_type"]) == (400, "Tokenizer")
    assert refused.json()["error"].startswith("inputs[1]: ")
    assert len(cut.json()) == 2


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"inputs": []}, 400, "Empty"),
        ({"inputs": ["a"] * 2049}, 400, "Validation"),
        ({"inputs": "a" * 20_000}, 413, "Validation"),
    ],
)
async def test_errors_have_the_types_of_that_server(body: dict[str, Any], status: int, kind: str) -> None:
    """Only what can be repeated is an overload."""
    async with serving(max_request_bytes=16_384, max_image_bytes=8192) as (_, client):
        answer = await client.post("/embed", json=body)

    assert (answer.status_code, answer.json()["error_type"]) == (status, kind)


async def test_info_and_health_tell_what_is_served() -> None:
    """Health has no body, and needs none."""
    async with serving() as (_, client):
        info = (await client.get("/info")).json()
        health = await client.get("/health")

    assert info.keys() >= REQUIRED_INFO
    assert (info["model_id"], info["max_input_length"], info["max_client_batch_size"]) == ("fake", 64, 2048)
    assert (health.status_code, health.content) == (200, b"")
