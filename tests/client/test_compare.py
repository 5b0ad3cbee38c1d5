"""Images compared with texts, pair by pair, by both clients."""

from __future__ import annotations

import math

import alignserve
import grpc
import numpy as np
import pytest
from alignserve import AsyncClient, Client, Comparison
from alignserve.testing import FakeServer


def expected(server: FakeServer, image: bytes, text: str) -> float:
    return float(server.embedding_of(image) @ server.embedding_of(text))


def test_a_pair_gives_what_its_embeddings_give(server: FakeServer, client: Client) -> None:
    """The similarity is the dot product of both embeddings, and the logit is scaled by the temperature."""
    found = client.compare(b"photo", "a cat")

    assert found.similarity == pytest.approx(expected(server, b"photo", "a cat"), abs=1e-6)
    assert found.logit == pytest.approx(found.similarity / client.model_info().temperature)


def test_lists_are_paired_in_order_and_split(server: FakeServer, client: Client) -> None:
    """More pairs than fit into a request become several requests; the results keep their order."""
    images = [f"image {number}".encode() for number in range(9)]
    texts = [f"text {number}" for number in range(9)]

    found = client.compare(images, texts)

    assert [one.similarity for one in found] == pytest.approx(
        [expected(server, image, text) for image, text in zip(images, texts, strict=True)], abs=1e-6
    )
    sizes = [len(call.request.pairs) for call in server.received if call.method == "Compare"]
    assert sorted(sizes, reverse=True) == [4, 4, 1]


async def test_the_asyncio_client_compares_too(server: FakeServer, async_client: AsyncClient) -> None:
    """Both clients have the same methods."""
    one = await async_client.compare(b"photo", "a cat")
    (other,) = await async_client.compare([b"photo"], ["a cat"])

    assert one == other == Comparison(one.similarity, one.logit)


def test_lists_of_different_lengths_are_refused(client: Client) -> None:
    """A text is not silently used for several images."""
    with pytest.raises(ValueError, match="2 images and 1 texts; give a text for each image"):
        client.compare([b"a", b"b"], ["one"])


def test_one_bad_pair_does_not_fail_the_others(client: Client) -> None:
    """Errors name the position in the caller's list, whichever half of the pair is at fault."""
    images, texts = [b"a", b"b", b"", b"d", b"e"], ["1", "2", "3", "4", " "]

    found = client.compare(images, texts, on_error="return")

    errors = {place: each for place, each in enumerate(found) if not isinstance(each, Comparison)}
    assert {place: error.violations[0].field for place, error in errors.items()} == {
        2: "pairs[2].image.content",
        4: "pairs[4].text",
    }


def test_detailed_results_have_tokens_and_not_a_number(client: Client) -> None:
    """A pair that failed has NaN and no tokens."""
    found = client.compare_detailed([b"a", b""], ["one two", "three"], on_error="return")

    assert math.isnan(found.comparisons[1].similarity)
    assert [each.token_count for each in found.tokenizations] == [4, 0]
    assert set(found.errors) == {1}
    assert found.stats


def test_a_refused_comparison_is_sent_again(server: FakeServer, client: Client) -> None:
    """Comparisons have the same retries as every other call."""
    server.fail_next(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_delay_seconds=0.01, times=2)

    client.compare(b"photo", "a cat")

    assert [call.method for call in server.received] == ["Compare"] * 3


def test_the_type_of_an_unreadable_file_is_named() -> None:
    """The advice for files that are not images also holds for pairs."""
    with (
        FakeServer(checks_images=True) as fake,
        Client(fake.target) as client,
        pytest.raises(alignserve.InvalidArgumentError, match="the file is a PDF") as caught,
    ):
        client.compare(b"%PDF-1.7", "a cat")

    assert caught.value.violations[0].field == "pairs[0].image.content"


def test_too_large_pixels_are_sent_as_png(server: FakeServer) -> None:
    """Pixels of one color fit into a small request as PNG."""
    pixels = np.full((100, 100, 3), 7, np.uint8)
    with FakeServer(max_request_bytes=2000) as small, Client(small.target) as client:
        client.compare([pixels, pixels], ["a", "b"])

    sources = [pair.image.WhichOneof("source") for call in small.received[1:] for pair in call.request.pairs]
    assert sources == ["content"] * 2
