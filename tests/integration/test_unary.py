"""Unary calls: each caller gets its own result, whichever calls share its batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve_server.model.fake import FakeEncoder

from tests.integration.serving import (
    RunningServer,
    classify_request,
    image_request,
    refused,
    running,
    text_request,
    until,
)


def vector(embedding: pb.Embedding) -> np.ndarray:
    """Reads a packed embedding."""
    return np.frombuffer(embedding.packed_float32, "<f4")


@pytest.mark.shapes
@pytest.mark.parametrize("count", [640, pytest.param(10_000, marks=pytest.mark.long)])
async def test_inputs_of_64_callers_are_paired_with_their_results(count: int) -> None:
    """64 callers send different inputs; each gets its own embedding, and they share batches."""
    inputs = [f"text number {i}" if i % 2 else f"image {i}".encode() for i in range(count)]
    todo = iter(inputs)
    encoder = FakeEncoder(seconds_per_batch=0.005)  # a device on which batching pays
    async with running(encoder, max_image_batch_size=32) as served:

        async def caller() -> list[bool]:
            right = []
            for given in todo:
                response: Any
                if isinstance(given, str):
                    response = await served.stub.EmbedText(text_request(given))
                else:
                    response = await served.stub.EmbedImage(image_request(given))
                expected = encoder.embedding_of(given)
                right.append(np.allclose(vector(response.embeddings[0]), expected, atol=1e-6))
            return right

        answers = await asyncio.gather(*(caller() for _ in range(64)))

        assert sum(map(sum, answers)) == count
        for modality in ("image", "text"):
            batches = served.sample("alignserve_batch_size_count", modality=modality)
            assert served.sample("alignserve_batch_size_sum", modality=modality) / batches > 2.0


@pytest.mark.shapes
async def test_entries_that_arrive_while_the_device_works_share_the_next_batch(served: RunningServer) -> None:
    """All entries that wait when the device becomes free run together."""
    served.encoder.gate.clear()
    first = asyncio.ensure_future(served.stub.EmbedText(text_request("first")))
    await until(lambda: len(served.encoder.batches) == 1)
    others = [asyncio.ensure_future(served.stub.EmbedText(text_request(f"other {i}"))) for i in range(20)]
    await until(lambda: served.waiting("text") == 20)

    served.encoder.gate.set()
    await asyncio.gather(first, *others)

    assert [len(batch.keys) for batch in served.encoder.batches] == [1, 20]


async def test_answers_follow_the_order_of_the_request(served: RunningServer) -> None:
    """A call with texts of many lengths gets its embeddings in the order it sent them."""
    texts = [" ".join(["word"] * length + [str(length)]) for length in (30, 1, 17, 2, 40, 1, 9)]

    response = await served.stub.EmbedText(text_request(*texts))

    for text, embedding in zip(texts, response.embeddings, strict=True):
        np.testing.assert_allclose(vector(embedding), served.encoder.embedding_of(text), atol=1e-6)
    assert [t.token_count for t in response.tokenizations] == [len(text.split()) + 2 for text in texts]


@pytest.mark.parametrize(
    ("embedding_format", "read", "tolerance"),
    [
        (pb.EMBEDDING_FORMAT_UNSPECIFIED, lambda e: np.asarray(e.values), 1e-6),
        (pb.EMBEDDING_FORMAT_FLOAT_LIST, lambda e: np.asarray(e.values), 1e-6),
        (pb.EMBEDDING_FORMAT_PACKED_FLOAT32, lambda e: np.frombuffer(e.packed_float32, "<f4"), 1e-6),
        (pb.EMBEDDING_FORMAT_PACKED_FLOAT16, lambda e: np.frombuffer(e.packed_float16, "<f2"), 1e-3),
        (
            pb.EMBEDDING_FORMAT_PACKED_INT8,
            lambda e: np.frombuffer(e.packed_int8, np.int8) * e.int8_scale,
            0.51 / 127,
        ),
    ],
)
async def test_each_format_carries_the_vector_in_its_own_field(
    served: RunningServer,
    embedding_format: Any,
    read: Callable[[pb.Embedding], np.ndarray],
    tolerance: float,
) -> None:
    """Only the field that the format names is set; with int8, also the scale."""
    options = pb.EmbeddingOptions(format=embedding_format)

    response = await served.stub.EmbedText(pb.EmbedTextRequest(texts=["a"], embedding_options=options))

    embedding = response.embeddings[0]
    np.testing.assert_allclose(read(embedding), served.encoder.embedding_of("a"), atol=tolerance)
    assert len(embedding.ListFields()) == (2 if embedding.int8_scale else 1)


async def test_the_binary_format_carries_the_signs(served: RunningServer) -> None:
    """A bit for each element, the first one highest."""
    options = pb.EmbeddingOptions(format=pb.EMBEDDING_FORMAT_PACKED_BINARY)

    response = await served.stub.EmbedText(pb.EmbedTextRequest(texts=["a"], embedding_options=options))

    signs = "".join("1" if element > 0 else "0" for element in served.encoder.embedding_of("a"))
    assert response.embeddings[0] == pb.Embedding(packed_binary=bytes([int(signs, 2)]))


async def test_a_long_text_is_refused_unless_truncation_is_allowed(served: RunningServer) -> None:
    """A text is truncated only on request, and the response reports it."""
    long = " ".join(["word"] * 100)

    error = await refused(served.stub.EmbedText(text_request("short", long)))
    response = await served.stub.EmbedText(text_request("short", long, truncate=True))

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TEXT_TOO_LONG")
    assert error.fields == ["texts[1]"]
    assert [(t.token_count, t.truncated) for t in response.tokenizations] == [(3, False), (64, True)]


async def test_unknown_tokens_are_counted_for_the_caller_and_the_operator(served: RunningServer) -> None:
    """The response counts them per text, and metrics count those of texts and label prompts."""
    long = "[UNK] " * 100

    response = await served.stub.EmbedText(text_request("a [UNK] b", "a b", long, truncate=True))
    await served.stub.Classify(classify_request(b"x", "[UNK]", "cat"))

    told = [(one.token_count, one.unknown_token_count) for one in response.tokenizations]
    assert told == [(5, 1), (4, 0), (64, 62)]
    assert served.sample("alignserve_tokens_total") == 5 + 4 + 64 + 3 + 3
    assert served.sample("alignserve_unknown_tokens_total") == 1 + 62 + 1


@pytest.mark.shapes
async def test_every_bad_image_of_a_call_is_named_and_none_reaches_the_device(served: RunningServer) -> None:
    """A unary call is atomic: one bad image fails all, and the error names each."""
    error = await refused(served.stub.EmbedImage(image_request(b"fine", b"broken", b"fine too", b"broken 2")))

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_UNREADABLE")
    assert error.fields == ["images[1].content", "images[3].content"]
    assert served.encoder.batches == []


@pytest.mark.parametrize(
    ("method", "request_message", "reason", "field"),
    [
        ("EmbedImage", pb.EmbedImageRequest(), "REQUEST_EMPTY", "images"),
        ("EmbedImage", pb.EmbedImageRequest(images=[pb.Image()]), "REQUEST_EMPTY", "images[0].content"),
        ("EmbedImage", image_request(*[b"x"] * 65), "BATCH_TOO_LARGE", "images"),
        ("EmbedText", pb.EmbedTextRequest(), "REQUEST_EMPTY", "texts"),
        ("EmbedText", text_request("fine", " \n"), "TEXT_EMPTY", "texts[1]"),
        ("EmbedText", text_request(*["x"] * 65), "BATCH_TOO_LARGE", "texts"),
        (
            "EmbedText",
            pb.EmbedTextRequest(
                texts=["x"], embedding_options=pb.EmbeddingOptions(format=pb.EmbeddingFormat.ValueType(99))
            ),
            "ARGUMENT_INVALID",
            "embedding_options.format",
        ),
        ("Classify", classify_request(b"x"), "LABELS_INVALID", "labels"),
        ("Classify", classify_request(b"x", "cat", " "), "LABELS_INVALID", "labels[1]"),
        ("Classify", classify_request(b"x", *["cat"] * 1001), "LABELS_INVALID", "labels"),
        ("Classify", classify_request(b"x", "cat", " ".join(["long"] * 99)), "TEXT_TOO_LONG", "labels[1]"),
        (
            "Classify",
            classify_request(b"x", "cat", prompt_templates=["a {label}", "no placeholder"]),
            "TEMPLATE_INVALID",
            "prompt_templates[1]",
        ),
        (
            "Classify",
            classify_request(b"x", "cat", prompt_templates=["{label} and {label}"]),
            "TEMPLATE_INVALID",
            "prompt_templates[0]",
        ),
        ("Classify", classify_request(b"x", "cat", top_k=-1), "ARGUMENT_INVALID", "top_k"),
        ("Classify", classify_request(b"broken", "cat"), "IMAGE_UNREADABLE", "images[0].content"),
    ],
)
async def test_a_request_over_a_limit_is_refused_with_the_field_at_fault(
    served: RunningServer, method: str, request_message: object, reason: str, field: str
) -> None:
    """Each limit has its reason and its field path."""
    error = await refused(getattr(served.stub, method)(request_message))

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert error.fields == [field]
    assert served.items("image")["in_flight"] == served.items("text")["in_flight"] == 0


@pytest.mark.shapes
async def test_classify_scores_all_images_against_all_labels(served: RunningServer) -> None:
    """Scores are the softmax of cosine over temperature; `top_k` only shortens the list."""
    labels = ["cat", "dog", "cat", "rocket"]
    request = pb.ClassifyRequest(
        images=[pb.Image(content=b"one"), pb.Image(content=b"two")], labels=labels, top_k=3
    )

    response = await served.stub.Classify(request)

    table = np.stack([served.encoder.embedding_of(label) for label in labels])
    for content, result in zip((b"one", b"two"), response.results, strict=True):
        logits = table @ served.encoder.embedding_of(content) / 0.1
        scores = np.exp(logits) / np.exp(logits).sum()
        order = np.argsort(-logits, kind="stable")[:3]
        assert [c.label_index for c in result.classifications] == list(order)
        assert [c.label for c in result.classifications] == [labels[i] for i in order]
        np.testing.assert_allclose([c.score for c in result.classifications], scores[order], rtol=1e-4)
        np.testing.assert_allclose([c.logit for c in result.classifications], logits[order], rtol=1e-4)


async def test_a_repeated_label_set_costs_no_text_batch(served: RunningServer) -> None:
    """A second call with the same labels and templates runs one image and no texts."""
    request = classify_request(b"x", "cat", "dog", prompt_templates=["a {label}", "the {label}"])
    await served.stub.Classify(request)
    served.encoder.batches.clear()

    response = await served.stub.Classify(
        classify_request(
            b"y", "dog", "cat", prompt_templates=["a {label}", "the {label}"], include_stats=True
        )
    )

    assert [batch.modality for batch in served.encoder.batches] == ["image"]
    assert response.stats.cached_label_count == 2


async def test_stats_are_sent_only_on_request(served: RunningServer) -> None:
    """Requested timings are in the response and add up."""
    plain = await served.stub.EmbedText(text_request("a"))
    timed = await served.stub.EmbedText(text_request("b", "c", include_stats=True))

    assert not plain.HasField("stats")
    assert (timed.stats.batch_size, timed.stats.cached_item_count) == (2, 0)
    total = timed.stats.total_duration.ToMicroseconds()
    assert total >= timed.stats.compute_duration.ToMicroseconds() > 0


async def test_a_repeated_text_is_not_computed_again(served: RunningServer) -> None:
    """Its embedding comes from the cache, and the response says so."""
    first = await served.stub.EmbedText(text_request("a"))
    served.encoder.batches.clear()

    again = await served.stub.EmbedText(text_request("b", "a", include_stats=True))

    assert again.embeddings[1] == first.embeddings[0]
    assert [batch.keys for batch in served.encoder.batches] == [(served.encoder.key("b"),)]
    assert (again.stats.batch_size, again.stats.cached_item_count) == (1, 1)
    assert served.items("text")["ok"] == 3
    assert served.sample("alignserve_embedding_cache_hits_total", modality="text") == 1


@pytest.mark.shapes
async def test_images_are_cached_only_if_the_operator_says_so() -> None:
    """A cached image is neither decoded nor computed again."""
    for cache_bytes, batches in ((0, 2), (1 << 20, 1)):
        async with running(image_cache_bytes=cache_bytes) as served:
            answers = [await served.stub.EmbedImage(image_request(b"image")) for _ in range(2)]

            assert answers[0] == answers[1]
            assert len(served.encoder.batches) == batches


async def test_model_info_publishes_model_and_limits(served: RunningServer) -> None:
    """A client learns which model it talks to and what it may send."""
    info = await served.stub.GetModelInfo(pb.GetModelInfoRequest())

    assert (info.model_id, info.embedding_dimension) == ("fake", served.encoder.info.embedding_dimension)
    assert info.temperature == pytest.approx(0.1)
    assert (info.max_client_batch_size, info.max_stream_in_flight) == (64, 32)
    assert list(info.image_formats) == ["JPEG", "PNG", "WEBP", "GIF", "BMP"]


async def test_model_info_lists_enabled_formats() -> None:
    """They follow the formats that are always read, with the names that refusals use."""
    async with running(extra_image_formats="tiff,avif") as served:
        info = await served.stub.GetModelInfo(pb.GetModelInfoRequest())

    assert list(info.image_formats) == ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "TIFF"]


@pytest.mark.shapes
async def test_a_poisonous_entry_fails_by_itself() -> None:
    """An input that makes the model fail or answer NaN does not affect its neighbours."""
    encoder = FakeEncoder()
    async with running(encoder) as served:
        encoder.failing = {encoder.key("poison")}
        encoder.not_finite = {encoder.key("nan")}
        encoder.gate.clear()
        texts = ["plug", "a", "poison", "b", "nan", "c"]
        calls = [asyncio.ensure_future(served.stub.EmbedText(text_request(text))) for text in texts]
        await until(lambda: served.waiting("text") + sum(len(b.keys) for b in encoder.batches) == 6)

        encoder.gate.set()
        answers = await asyncio.gather(*calls, return_exceptions=True)

        failed = {text for text, answer in zip(texts, answers, strict=True) if isinstance(answer, Exception)}
        assert failed == {"poison", "nan"}
        error = await refused(served.stub.EmbedText(text_request("poison")))
        assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INFERENCE_FAILED")
        assert error.metadata["error_id"] in error.message
        assert "poisonous entry" not in error.message


async def test_a_batch_too_large_for_the_device_is_split_and_remembered() -> None:
    """Out of memory costs no caller its answer, and later batches are smaller."""
    encoder = FakeEncoder()
    async with running(encoder) as served:
        encoder.max_batch_size = 4

        first = await served.stub.EmbedText(text_request(*(f"t{i}" for i in range(16))))
        encoder.batches.clear()
        second = await served.stub.EmbedText(text_request(*(f"u{i}" for i in range(16))))

        assert len(first.embeddings) == len(second.embeddings) == 16
        assert max(len(batch.keys) for batch in encoder.batches) == 4
        assert served.sample("alignserve_batch_splits_total", reason="out_of_memory") == 3
