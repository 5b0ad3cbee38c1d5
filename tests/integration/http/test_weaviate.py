"""The inference container of Weaviate's multi2vec-clip."""

from __future__ import annotations

import json

import numpy as np

from tests.integration.http.dialects import IMAGE
from tests.integration.http.ports import serving


async def test_texts_and_images_become_vectors() -> None:
    """Weaviate's client sends null for an empty list, and no content-type."""
    bodies = [
        {"texts": ["a cat"], "images": None},
        {"texts": None, "images": [IMAGE]},
        {"texts": ["a cat", "w " * 100], "images": [IMAGE]},
    ]
    async with serving() as (served, client):
        answers = [
            (await client.post("/vectorize", content=json.dumps(body).encode())).json() for body in bodies
        ]

    text, image = served.encoder.embedding_of("a cat"), served.encoder.embedding_of(b"picture")
    np.testing.assert_allclose(answers[0]["textVectors"], [text], atol=1e-6)
    np.testing.assert_allclose(answers[1]["imageVectors"], [image], atol=1e-6)
    assert (answers[0]["imageVectors"], answers[1]["textVectors"]) == ([], [])
    assert [len(answers[2][name]) for name in ("textVectors", "imageVectors")] == [2, 1]


async def test_errors_are_in_the_field_that_weaviate_reads() -> None:
    """It shows `error` to its user."""
    async with serving() as (_, client):
        nothing = await client.post("/vectorize", json={"texts": [], "images": None})
        broken = await client.post("/vectorize", json={"texts": ["a"], "images": [IMAGE, "YnJva2Vu"]})

    assert nothing.json()["error"].startswith("texts: no inputs")
    assert broken.json()["error"].startswith("images[1]: image is")


async def test_weaviate_finds_it_ready_and_alive() -> None:
    """It waits for both at its start, then reads the metadata."""
    async with serving() as (_, client):
        statuses = [
            (await client.get(path)).status_code for path in ("/.well-known/ready", "/.well-known/live")
        ]
        meta = (await client.get("/meta")).json()

    assert statuses == [204, 204]
    assert (meta["model"], meta["dimensions"]) == ("fake", 8)
