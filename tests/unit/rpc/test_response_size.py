"""The bounds on response sizes are never too low, and close to the real sizes."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve_server.api import Comparisons
from alignserve_server.model.encoder import TokenizedText
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.model.zero_shot import score_images
from alignserve_server.rpc import convert, response_bytes, response_size
from google.protobuf.duration_pb2 import Duration

INFO = FakeEncoder().info
ALPHABETS = ("a", "abcdefgh ", "äöü", "猫犬", "🐱🐶")
LARGEST = 2**31 - 1

FORMATS = [None, *pb.EmbeddingFormat.values()]


def largest_stats() -> pb.InferenceStats:
    """Returns stats with every field set to its largest value."""
    stats = pb.InferenceStats()
    for field in pb.InferenceStats.DESCRIPTOR.fields:
        if field.message_type is None:
            setattr(stats, field.name, -1)  # a negative number takes the most bytes
        else:
            getattr(stats, field.name).CopyFrom(Duration(seconds=-1, nanos=-1))
    return stats


def some_label(rng: random.Random, longest: int) -> str:
    return "".join(rng.choices(rng.choice(ALPHABETS), k=rng.randint(1, longest)))


def classified(request: pb.ClassifyRequest, rng: random.Random) -> pb.ClassifyResponse:
    """Answers a request as the server does, with random embeddings."""
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    images = numbers.standard_normal((len(request.images), 4)).astype(np.float32)
    labels = numbers.standard_normal((len(request.labels), 4)).astype(np.float32)
    scored = score_images(images, labels, 1.0, request.top_k)
    written = b"".join([response_bytes.classification_result(request.labels, each) for each in scored])
    response = pb.ClassifyResponse.FromString(written)
    if request.include_stats:
        response.stats.CopyFrom(largest_stats())
    return response


def embeddings(count: int, dimension: int, options: pb.EmbeddingOptions) -> list[pb.Embedding]:
    written = response_bytes.embedding_encoder(options)(np.ones((count, dimension), np.float32))
    return list(pb.EmbedImageResponse.FromString(written).embeddings)


def tokenizations(texts: list[TokenizedText]) -> list[pb.Tokenization]:
    return list(pb.EmbedTextResponse.FromString(response_bytes.tokenizations(texts)).tokenizations)


@pytest.mark.parametrize("seed", range(60))
def test_no_classification_is_larger_than_its_bound(seed: int) -> None:
    """Labels in several scripts, images, top_k and stats are random; large responses come close."""
    rng = random.Random(seed)
    longest = rng.choice([1, 3, 20, 126, 130, 300, 20_000])
    labels = [
        some_label(rng, longest)
        for _ in range(rng.choice([1, 2, 127, 128, 129, 300]) // (1 + longest // 999))
    ]
    request = pb.ClassifyRequest(
        images=[pb.Image(content=b"x")] * rng.randint(1, 4),
        labels=labels or ["one"],
        top_k=rng.choice([0, 0, 1, 2, 50, 127, 1000]),
        include_stats=rng.random() < 0.5,
    )
    full = request.top_k == 0 or request.top_k >= len(request.labels)

    size = classified(request, rng).ByteSize()
    bound = response_size.classify_response_bytes(request)

    assert size <= bound
    if full and size > 1000:
        assert bound <= 1.3 * size


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_top_k_leaves_the_largest_labels(top_k: int) -> None:
    """Any label may be among the best, so the bound is reached if the longest are."""
    labels = ["a", "b" * 200, "c" * 17_000, "d" * 3]
    longest_first = sorted(range(4), key=lambda position: -len(labels[position]))[:top_k]
    request = pb.ClassifyRequest(images=[pb.Image()], labels=labels, top_k=top_k)
    largest = pb.ClassifyResponse(
        results=[
            pb.ClassificationResult(
                classifications=[
                    pb.Classification(label=labels[p], label_index=p, score=1, similarity=1, logit=1)
                    for p in longest_first
                ]
            )
        ]
    )

    assert response_size.classify_response_bytes(request) == largest.ByteSize()


def test_the_bound_of_a_classification_of_all_labels_is_almost_exact() -> None:
    """With 64 images and a thousand labels, only position 0 of the first label takes less than counted."""
    rng = random.Random(7)
    labels = [f"{position:085}" for position in range(1000)]
    request = pb.ClassifyRequest(images=[pb.Image(content=b"x")] * 64, labels=labels)

    size = classified(request, rng).ByteSize()

    assert 0 <= response_size.classify_response_bytes(request) - size <= 64 * 2


@pytest.mark.parametrize("embedding_format", FORMATS)
@pytest.mark.parametrize("dimension", [1, 31, 32, 640, 5000])
@pytest.mark.parametrize("count", [1, 64])
@pytest.mark.parametrize("include_stats", [False, True])
def test_no_embedding_of_images_is_larger_than_its_bound(
    count: int, dimension: int, embedding_format: Any, include_stats: bool
) -> None:
    """This holds for each format, with and without stats; large responses come close."""
    options = pb.EmbeddingOptions(format=embedding_format)
    request = pb.EmbedImageRequest(
        images=[pb.Image(content=b"x")] * count, embedding_options=options, include_stats=include_stats
    )
    response = pb.EmbedImageResponse(
        embeddings=embeddings(count, dimension, options), stats=largest_stats() if include_stats else None
    )

    bound = response_size.embed_image_response_bytes(request, replace(INFO, embedding_dimension=dimension))

    assert bound == response.ByteSize()


@pytest.mark.parametrize("embedding_format", FORMATS)
@pytest.mark.parametrize("max_tokens", [64, 127, 128, 512])
@pytest.mark.parametrize("count", [1, 64])
def test_no_embedding_of_texts_is_larger_than_its_bound(
    count: int, max_tokens: int, embedding_format: Any
) -> None:
    """Each text has the maximum length and is truncated; the bound is close for short ones too."""
    options = pb.EmbeddingOptions(format=embedding_format)
    request = pb.EmbedTextRequest(texts=["x"] * count, embedding_options=options, include_stats=True)
    info = replace(INFO, embedding_dimension=640, max_text_tokens=max_tokens)
    of_texts = embeddings(count, 640, options)
    longest = [TokenizedText((7,) * max_tokens, truncated=True)] * count
    shortest = [TokenizedText((7,))] * count

    bound = response_size.embed_text_response_bytes(request, info)

    most, least = (
        pb.EmbedTextResponse(
            embeddings=of_texts, tokenizations=tokenizations(texts), stats=largest_stats()
        ).ByteSize()
        for texts in (longest, shortest)
    )
    assert most <= bound <= 1.3 * least


@pytest.mark.parametrize("embedding_format", FORMATS)
@pytest.mark.parametrize("terms", [1, 5])
def test_no_embedding_of_queries_is_larger_than_its_bound(embedding_format: Any, terms: int) -> None:
    """A query has one embedding, however many terms it has."""
    options = pb.EmbeddingOptions(format=embedding_format)
    query = pb.ComposedQuery(terms=[pb.QueryTerm(text="x")] * terms)
    request = pb.EmbedQueryRequest(queries=[query] * 12, embedding_options=options, include_stats=True)
    response = pb.EmbedQueryResponse(embeddings=embeddings(12, 640, options), stats=largest_stats())

    bound = response_size.embed_query_response_bytes(request, replace(INFO, embedding_dimension=640))

    assert bound == response.ByteSize()


@pytest.mark.parametrize("include_stats", [False, True])
@pytest.mark.parametrize("count", [1, 64])
def test_no_comparison_is_larger_than_its_bound(count: int, include_stats: bool) -> None:
    """Each text has the maximum length and is truncated; it holds for any similarity."""
    request = pb.CompareRequest(pairs=[pb.ImageTextPair(text="x")] * count, include_stats=include_stats)
    numbers = Comparisons(np.full(count, -1, np.float32), np.full(count, -20, np.float32))
    longest = [TokenizedText((7,) * 64, truncated=True, unknown_token_count=62)] * count
    response = pb.CompareResponse(
        comparisons=convert.comparisons(numbers),
        tokenizations=tokenizations(longest),
        stats=largest_stats() if include_stats else None,
    )

    assert response_size.compare_response_bytes(request, INFO) == response.ByteSize()


@pytest.mark.parametrize("id_size", [1, 128])
@pytest.mark.parametrize("labels", [1, 2, 200])
def test_an_item_of_a_stream_takes_its_wrapper_too(id_size: int, labels: int) -> None:
    """The wrapper has the correlation id and the field with the response."""
    response = pb.ClassifyResponse(
        results=[pb.ClassificationResult(classifications=[pb.Classification(label="l" * 100)] * labels)]
    )
    item = pb.StreamInferResponse(correlation_id="i" * id_size, classify=response)

    size = response_size.stream_response_bytes("i" * id_size, response.ByteSize())

    assert size == item.ByteSize()
