"""Data types of embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from alignserve import Client, ImageItem, Item, TextItem
from alignserve.testing import FakeServer

TEXTS = [f"text {number}" for number in range(10)]


def test_int8_keeps_the_angles(server: FakeServer, client: Client) -> None:
    """Rows are signed bytes; times their scale they are the embeddings."""
    exact = client.embed_text(TEXTS)

    found = client.embed_text_detailed(TEXTS, dtype="int8")

    assert found.embeddings.dtype == np.int8
    assert found.int8_scales is not None
    restored = found.embeddings * found.int8_scales[:, None]
    assert np.abs(restored - exact).max() <= found.int8_scales.max() / 2 + 1e-6
    assert np.abs(found.embeddings).max(axis=1).tolist() == [127] * 10


def test_binary_has_the_signs(client: Client) -> None:
    """A bit per number, the first one highest."""
    exact = client.embed_text(TEXTS)

    packed = client.embed_text(TEXTS, dtype="binary")

    assert packed.dtype == np.uint8
    assert packed.shape == (10, 1)
    assert np.array_equal(np.unpackbits(packed, axis=1), exact > 0)


def test_a_dimension_that_is_not_a_multiple_of_eight_is_padded() -> None:
    """Unused bits are 0."""
    with FakeServer(embedding_dimension=11) as fake, Client(fake.target) as client:
        packed = client.embed_text("a", dtype="binary")

        bits = np.unpackbits(packed)
        assert np.array_equal(bits[:11], fake.embedding_of("a") > 0)
        assert not bits[11:].any()


@pytest.mark.parametrize(
    ("dtype", "width", "missing"), [("float16", 8, np.nan), ("int8", 8, 0), ("binary", 1, 0)]
)
def test_a_failed_row_is_marked_as_its_type_allows(
    client: Client, dtype: Any, width: int, missing: float
) -> None:
    """Integers have no NaN; `errors` says which rows failed."""
    found = client.embed_image_detailed([b"a", b""], dtype=dtype, on_error="return")
    all_failed = client.embed_image_detailed([b""], dtype=dtype, on_error="return")

    assert np.array_equal(found.embeddings[1], [missing] * width, equal_nan=True)
    assert found.embeddings[0].any()
    assert all_failed.embeddings.shape == (1, width)
    assert set(found.errors) == {1}


def test_scales_are_only_those_of_int8(client: Client) -> None:
    """Other types need none."""
    assert client.embed_text_detailed("a").int8_scales is None
    assert client.embed_text_detailed("a", dtype="binary").int8_scales is None


def test_streams_have_every_type(server: FakeServer, client: Client) -> None:
    """An item chooses its own type; int8 comes with its scale."""
    items: list[Item] = [TextItem("a", dtype="int8"), ImageItem(b"a", dtype="binary"), TextItem("a")]

    small, signs, exact = client.stream(items, ordered=True)

    assert small.int8_scale is not None
    assert np.abs(small.embedding * small.int8_scale - exact.embedding).max() < small.int8_scale
    assert signs.embedding.dtype == np.uint8
    assert signs.int8_scale is exact.int8_scale is None
