"""Compare over gRPC: similarities of image-text pairs, unary and in streams."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
from alignserve.v1 import align_service_pb2 as pb

from tests.integration.serving import RunningServer, read_status, refused, running, text_request, until
from tests.integration.test_stream import infer


def pair(content: bytes, text: str) -> pb.ImageTextPair:
    return pb.ImageTextPair(image=pb.Image(content=content), text=text)


def compare_request(*pairs: tuple[bytes, str], **fields: Any) -> pb.CompareRequest:
    """Builds a request to compare encoded images with texts."""
    return pb.CompareRequest(pairs=[pair(*each) for each in pairs], **fields)


def cosine(served: RunningServer, content: bytes, text: str) -> float:
    return float(served.encoder.embedding_of(content) @ served.encoder.embedding_of(text))


async def test_each_pair_has_its_similarity_and_logit(served: RunningServer) -> None:
    """They follow the order of the request; the logit is the cosine divided by the temperature."""
    pairs = [(b"image %d" % i, f"text {i}") for i in range(30)]

    response = await served.stub.Compare(compare_request(*pairs))

    expected = [cosine(served, *each) for each in pairs]
    found = response.comparisons
    np.testing.assert_allclose([each.similarity for each in found], expected, atol=1e-6)
    np.testing.assert_allclose([each.logit for each in found], np.divide(expected, 0.1), atol=1e-5)
    assert [each.token_count for each in response.tokenizations] == [4] * 30
    assert not response.HasField("stats")


async def test_a_pair_scores_as_in_classify_and_as_its_embeddings(served: RunningServer) -> None:
    """The same numbers, whichever method computes them."""
    image = pb.Image(content=b"image")

    compared = (await served.stub.Compare(compare_request((b"image", "cat")))).comparisons[0]
    classified = await served.stub.Classify(pb.ClassifyRequest(images=[image], labels=["cat"]))
    images = await served.stub.EmbedImage(pb.EmbedImageRequest(images=[image]))
    texts = await served.stub.EmbedText(pb.EmbedTextRequest(texts=["cat"]))

    best = classified.results[0].classifications[0]
    product = np.dot(images.embeddings[0].values, texts.embeddings[0].values)
    assert compared.similarity == pytest.approx(best.similarity, abs=1e-6)
    assert compared.logit == pytest.approx(best.logit, abs=1e-5)
    assert compared.similarity == pytest.approx(product, abs=1e-6)


async def test_an_image_with_several_captions_costs_one_inference(served: RunningServer) -> None:
    """So does a text with several images; all items are accepted and answered."""
    pairs = [(b"image %d" % (i // 5), f"caption {i}") for i in range(20)]
    pairs += [(b"another %d" % i, "the same") for i in range(4)]

    await served.stub.Compare(compare_request(*pairs))

    assert served.sample("alignserve_batch_size_sum", modality="image") == 4 + 4
    assert served.sample("alignserve_batch_size_sum", modality="text") == 20 + 1
    assert served.items("image")["ok"] == served.items("text")["ok"] == 24


async def test_stats_cover_images_and_texts() -> None:
    """A call served from the caches says so."""
    async with running(image_cache_bytes=1 << 20) as served:
        request = compare_request((b"a", "a"), (b"b", "b"), include_stats=True)

        first = (await served.stub.Compare(request)).stats
        again = (await served.stub.Compare(request)).stats

    assert (first.cached_item_count, first.batch_size) == (0, 2)
    assert (again.cached_item_count, again.batch_size) == (4, 0)


async def test_a_long_text_is_truncated_only_on_request(served: RunningServer) -> None:
    """As in EmbedText; the response reports it for its pair."""
    long = " ".join(["word"] * 100)

    error = await refused(served.stub.Compare(compare_request((b"a", "short"), (b"b", long))))
    response = await served.stub.Compare(compare_request((b"a", "[UNK]"), (b"b", long), truncate=True))

    assert (error.reason, error.fields) == ("TEXT_TOO_LONG", ["pairs[1].text"])
    found = [(one.token_count, one.truncated, one.unknown_token_count) for one in response.tokenizations]
    assert found == [(3, False, 1), (64, True, 0)]


@pytest.mark.parametrize(
    ("request_message", "reason", "fields"),
    [
        (pb.CompareRequest(), "REQUEST_EMPTY", ["pairs"]),
        (compare_request(*[(b"x", "x")] * 65), "BATCH_TOO_LARGE", ["pairs"]),
        (
            pb.CompareRequest(pairs=[pb.ImageTextPair(text="x"), pair(b"x", "x"), pair(b"", "x")]),
            "REQUEST_EMPTY",
            ["pairs[0].image.content", "pairs[2].image.content"],
        ),
        (compare_request((b"x", "x"), (b"x", " ")), "TEXT_EMPTY", ["pairs[1].text"]),
        (compare_request((b"broken", "x")), "IMAGE_UNREADABLE", ["pairs[0].image.content"]),
        (
            compare_request((b"x", ""), (b"broken", "x"), (b"broken", "")),
            "TEXT_EMPTY",
            ["pairs[0].text", "pairs[1].image.content", "pairs[2].image.content", "pairs[2].text"],
        ),
        (
            compare_request(*[(b"broken", "")] * 20),
            "IMAGE_UNREADABLE",
            [f"pairs[{i}].{side}" for i in range(8) for side in ("image.content", "text")],
        ),
    ],
    ids=["no pairs", "too many", "no image", "blank text", "broken image", "both sides", "more than 16"],
)
async def test_an_invalid_request_names_all_items_at_fault(
    served: RunningServer, request_message: pb.CompareRequest, reason: str, fields: list[str]
) -> None:
    """In the order of the request, up to 16; nothing stays in a queue."""
    error = await refused(served.stub.Compare(request_message))

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert error.fields == fields
    await until(lambda: served.items("image")["in_flight"] == served.items("text")["in_flight"] == 0)


async def test_items_of_a_stream_fail_by_themselves(served: RunningServer) -> None:
    """A stream carries pairs like any other request."""
    requests = [
        pb.StreamInferRequest(correlation_id="good", compare=compare_request((b"a", "a"))),
        pb.StreamInferRequest(correlation_id="bad", compare=compare_request((b"broken", ""))),
        pb.StreamInferRequest(correlation_id="other", embed_text=text_request("a")),
    ]

    answers = {answer.correlation_id: answer for answer in await infer(served, requests)}

    (comparison,) = answers["good"].compare.comparisons
    assert comparison.similarity == pytest.approx(cosine(served, b"a", "a"), abs=1e-6)
    _, _, reason, fields, _, _ = read_status(answers["bad"].error)
    assert (reason, fields) == ("IMAGE_UNREADABLE", ["pairs[0].image.content", "pairs[0].text"])
    assert answers["other"].WhichOneof("result") == "embed_text"


async def test_a_model_failure_of_one_side_fails_the_call_and_spares_neighbours(
    served: RunningServer,
) -> None:
    """The other side's items are given up; neighbours in the same batches are answered."""
    served.encoder.failing.add(served.encoder.key("poison"))

    doomed, neighbour = await asyncio.gather(
        refused(served.stub.Compare(compare_request((b"a", "poison"), (b"b", "fine")))),
        served.stub.Compare(compare_request((b"b", "fine"))),
    )

    assert doomed.reason == "INFERENCE_FAILED"
    assert len(neighbour.comparisons) == 1
    await until(lambda: served.items("image")["in_flight"] == served.items("text")["in_flight"] == 0)


@pytest.mark.shapes
async def test_a_cancelled_call_frees_its_places_in_both_queues(served: RunningServer) -> None:
    """Its neighbours succeed, and its items never run."""
    served.encoder.gate.clear()
    plug = asyncio.ensure_future(served.stub.EmbedText(text_request("plug")))
    await until(lambda: len(served.encoder.batches) == 1)
    doomed = served.stub.Compare(compare_request((b"doomed", "doomed")))
    neighbour = asyncio.ensure_future(served.stub.Compare(compare_request((b"n", "neighbour"))))
    await until(lambda: served.waiting("text") == served.waiting("image") == 2)

    doomed.cancel()
    await until(lambda: served.waiting("text") == served.waiting("image") == 1)
    served.encoder.gate.set()
    await asyncio.gather(plug, neighbour)

    reached = {key for batch in served.encoder.batches for key in batch.keys}
    assert served.encoder.key(b"doomed") not in reached
    assert served.encoder.key("doomed") not in reached
    assert served.items("image") == {
        "accepted": 2, "in_flight": 0, "ok": 1, "failed": 0, "cancelled": 1, "expired": 0,
    }  # fmt: skip


async def test_an_expired_call_frees_its_places_in_both_queues(served: RunningServer) -> None:
    """A timer enforces the deadline, not the next batch."""
    served.encoder.gate.clear()
    plug = asyncio.ensure_future(served.stub.EmbedText(text_request("plug")))
    await until(lambda: len(served.encoder.batches) == 1)

    error = await refused(served.stub.Compare(compare_request((b"late", "late")), timeout=0.5))
    await until(lambda: served.waiting("text") == served.waiting("image") == 0)
    served.encoder.gate.set()
    await plug

    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: served.items("image")["in_flight"] == served.items("text")["in_flight"] == 0)
    assert served.items("image")["expired"] == served.items("text")["expired"] == 1


async def test_a_full_queue_refuses_both_sides_and_keeps_no_room() -> None:
    """If texts have no room, the images do not stay."""
    async with running(max_queue_size=64, max_client_batch_size=48) as served:
        served.encoder.gate.clear()
        plug = asyncio.ensure_future(served.stub.EmbedText(text_request("plug")))
        await until(lambda: len(served.encoder.batches) == 1)
        filling = asyncio.ensure_future(served.stub.EmbedText(text_request(*map(str, range(48)))))
        await until(lambda: served.waiting("text") == 48)

        error = await refused(served.stub.Compare(compare_request((b"a", "a"), (b"b", "b"))))
        await until(lambda: served.items("image")["in_flight"] == 0)
        served.encoder.gate.set()
        await asyncio.gather(plug, filling)

        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert error.retry_delay_seconds is not None
        assert served.waiting("image") == 0


async def test_many_callers_get_their_own_numbers(served: RunningServer) -> None:
    """Pairs of concurrent calls share batches but never results."""
    calls = [[(b"image %d" % (i * j % 50), f"text {i} {j}") for j in range(4)] for i in range(60)]

    responses = await asyncio.gather(*(served.stub.Compare(compare_request(*pairs)) for pairs in calls))

    for pairs, response in zip(calls, responses, strict=True):
        expected = [cosine(served, *each) for each in pairs]
        np.testing.assert_allclose([c.similarity for c in response.comparisons], expected, atol=1e-6)
