"""The Python client on a real server and a real checkpoint: pixels, comparisons, queries and data types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from alignserve import Client, CompareItem, Query, QueryItem
from PIL import Image

from tests.processes import ROOT, ServerProcess

PHOTO = ROOT / "tests/data/photos/cat.jpg"
TOLERANCE = 1e-4


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


def cosine(one: Any, other: Any) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_pixels_have_the_embedding_of_their_file(client: Client, mode: str) -> None:
    """An array, a Pillow image and a lossless file of the same pixels are the same image."""
    image = Image.open(PHOTO).convert(mode)
    if mode == "RGBA":
        image.putalpha(128)

    from_pillow, from_array = client.embed_image([image, np.asarray(image)])
    from_file = client.embed_image(PHOTO)

    assert cosine(from_pillow, from_array) == pytest.approx(1, abs=TOLERANCE)
    if mode != "L":
        assert cosine(from_array, from_file) == pytest.approx(1, abs=TOLERANCE)


def test_a_comparison_equals_the_dot_product_of_embeddings(client: Client) -> None:
    """One number instead of two vectors, unary and in a stream."""
    expected = float(client.embed_image(PHOTO) @ client.embed_text("a cat"))

    compared = client.compare(PHOTO, "a cat")
    (streamed,) = client.stream([CompareItem(PHOTO, "a cat")])

    assert compared.similarity == pytest.approx(expected, abs=TOLERANCE)
    assert compared.logit == pytest.approx(expected / client.model_info().temperature, abs=0.01)
    assert streamed.comparison.similarity == pytest.approx(expected, abs=TOLERANCE)


def test_a_query_equals_the_weighted_sum_of_embeddings(client: Client) -> None:
    """Unary and in a stream, with raw pixels as a term."""
    pixels = np.asarray(Image.open(PHOTO))
    total = client.embed_image(PHOTO) + 0.5 * client.embed_text("red") - 0.25 * client.embed_text("a dog")

    query: Query = [pixels, ("red", 0.5), ("a dog", -0.25)]
    vector = client.embed_query(query)
    (streamed,) = client.stream([QueryItem(query)])

    assert cosine(vector, total) == pytest.approx(1, abs=TOLERANCE)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=TOLERANCE)
    assert cosine(streamed.embedding, total) == pytest.approx(1, abs=TOLERANCE)


def test_smaller_types_keep_what_they_promise(client: Client) -> None:
    """int8 keeps the cosine above 0.999, and binary the signs."""
    exact = client.embed_text("a cat")

    small = client.embed_text_detailed("a cat", dtype="int8")
    signs = client.embed_text("a cat", dtype="binary")

    assert cosine(small.embeddings[0].astype(np.float32), exact) > 0.999
    assert small.int8_scales is not None
    assert np.allclose(small.embeddings[0] * small.int8_scales[0], exact, atol=small.int8_scales[0])
    assert np.array_equal(np.unpackbits(signs)[: exact.size], exact > 0)


def test_lists_of_pairs_and_queries_are_split_by_the_servers_limits(client: Client) -> None:
    """More than one request each; a bad one is named and the others are answered."""
    count = client.model_info().max_client_batch_size + 10
    texts = [f"text {number}" for number in range(count)]
    texts[70] = " "

    compared = client.compare_detailed([PHOTO] * count, texts, on_error="return")
    embedded = client.embed_query_detailed([[PHOTO, text] for text in texts], on_error="return")

    assert [error.violations[0].field for error in compared.errors.values()] == ["pairs[70].text"]
    assert [error.violations[0].field for error in embedded.errors.values()] == ["queries[70].terms[1].text"]
    assert np.isfinite(embedded.embeddings).all(axis=1).sum() == count - 1
