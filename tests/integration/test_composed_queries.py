"""EmbedQuery over gRPC: weighted images and texts become one embedding."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import grpc
import numpy as np
import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve_server.model.encoder import l2_normalize

from tests.integration.serving import PACKED, RunningServer, read_status, refused, text_request, until
from tests.integration.test_stream import infer
from tests.integration.test_unary import vector


def image(content: bytes, weight: float | None = None) -> pb.QueryTerm:
    return pb.QueryTerm(image=pb.Image(content=content), weight=weight)


def text(words: str, weight: float | None = None) -> pb.QueryTerm:
    return pb.QueryTerm(text=words, weight=weight)


def query_request(*queries: list[pb.QueryTerm], **fields: Any) -> pb.EmbedQueryRequest:
    """Builds a request for packed embeddings of composed queries."""
    return pb.EmbedQueryRequest(
        **{
            "queries": [pb.ComposedQuery(terms=terms) for terms in queries],
            "embedding_options": PACKED,
            **fields,
        }
    )


async def test_a_query_is_the_weighted_sum_of_its_terms(served: RunningServer) -> None:
    """Images and texts in any order, with weights of either sign; a weight that is not set is 1."""
    of = served.encoder.embedding_of
    sums = [of(b"bag") + of("red"), of("a") - 0.5 * of(b"b") + 2 * of("c"), of(b"alone")]
    request = query_request(
        [image(b"bag"), text("red")], [text("a"), image(b"b", -0.5), text("c", 2.0)], [image(b"alone", 3.0)]
    )

    response = await served.stub.EmbedQuery(request)

    found = [vector(embedding) for embedding in response.embeddings]
    np.testing.assert_allclose(found, l2_normalize(np.stack(sums)), atol=1e-6)
    assert not response.HasField("stats")


async def test_the_sum_itself_is_returned_on_request(served: RunningServer) -> None:
    """Its terms are normalized, the sum is not."""
    of = served.encoder.embedding_of
    options = pb.EmbeddingOptions(skip_normalization=True)

    response = await served.stub.EmbedQuery(
        query_request([image(b"a", 2.0), text("b", -0.25)], embedding_options=options)
    )

    np.testing.assert_allclose(response.embeddings[0].values, 2 * of(b"a") - 0.25 * of("b"), atol=1e-6)


async def test_stats_and_truncation_are_those_of_the_terms(served: RunningServer) -> None:
    """A cached text counts; a long text is truncated only on request."""
    long = " ".join(["word"] * 100)
    await served.stub.EmbedText(text_request("cached"))

    error = await refused(served.stub.EmbedQuery(query_request([text("a"), text(long)])))
    response = await served.stub.EmbedQuery(
        query_request([text(long), text("cached"), image(b"a")], truncate=True, include_stats=True)
    )

    assert (error.reason, error.fields) == ("TEXT_TOO_LONG", ["queries[0].terms[1].text"])
    assert response.stats.cached_item_count == 1


@pytest.mark.parametrize(
    ("request_message", "reason", "fields"),
    [
        (query_request(), "REQUEST_EMPTY", ["queries"]),
        (query_request([text("a")] * 33, [text("b")] * 32), "BATCH_TOO_LARGE", ["queries"]),
        (query_request([text("a")], []), "QUERY_INVALID", ["queries[1].terms"]),
        (query_request([pb.QueryTerm()]), "QUERY_INVALID", ["queries[0].terms[0]"]),
        (query_request([image(b"")]), "REQUEST_EMPTY", ["queries[0].terms[0].image.content"]),
        (query_request([text("a"), text("b", 0.0)]), "QUERY_INVALID", ["queries[0].terms[1].weight"]),
        (
            query_request([text("a", math.nan)], [text("b", math.inf)]),
            "QUERY_INVALID",
            ["queries[0].terms[0].weight", "queries[1].terms[0].weight"],
        ),
        (
            query_request([text("a"), image(b"broken")], [text(" "), text("b")]),
            "IMAGE_UNREADABLE",
            ["queries[0].terms[1].image.content", "queries[1].terms[0].text"],
        ),
    ],
    ids=["none", "too many", "no terms", "empty term", "empty image", "zero", "not finite", "bad inputs"],
)
async def test_an_invalid_request_names_all_items_at_fault(
    served: RunningServer, request_message: pb.EmbedQueryRequest, reason: str, fields: list[str]
) -> None:
    """Nothing reaches the device or stays in a queue."""
    error = await refused(served.stub.EmbedQuery(request_message))

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert error.fields == fields
    assert served.encoder.batches == []
    await until(lambda: served.items("image")["in_flight"] == served.items("text")["in_flight"] == 0)


@pytest.mark.parametrize("skip_normalization", [False, True])
async def test_queries_whose_terms_cancel_out_are_refused(
    served: RunningServer, skip_normalization: bool
) -> None:
    """What rounding leaves has no direction; the error names each such query."""
    options = pb.EmbeddingOptions(skip_normalization=skip_normalization)
    request = query_request(
        [text("a"), text("a", -1.0)],
        [text("fine")],
        [image(b"b", 0.3), image(b"b", -0.1), image(b"b", -0.2)],
        embedding_options=options,
    )

    error = await refused(served.stub.EmbedQuery(request))

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "QUERY_INVALID")
    assert error.fields == ["queries[0]", "queries[2]"]


async def test_a_weight_of_any_size_is_accepted(served: RunningServer) -> None:
    """Only the ratio of weights matters, unless the sum itself is asked for and does not fit a float."""
    terms = [text("a", 3e38), image(b"b", 3e38)]
    raw = pb.EmbeddingOptions(skip_normalization=True)

    response = await served.stub.EmbedQuery(query_request(terms))
    huge = await refused(
        served.stub.EmbedQuery(query_request([text("a", 3e38), text("a", 3e38)], embedding_options=raw))
    )

    expected = l2_normalize(served.encoder.embedding_of("a") + served.encoder.embedding_of(b"b"))
    np.testing.assert_allclose(vector(response.embeddings[0]), expected, atol=1e-6)
    assert (huge.reason, huge.fields) == ("QUERY_INVALID", ["queries[0]"])


@pytest.mark.parametrize("weight", [1e10, 1e-10])
async def test_a_sum_that_float16_cannot_hold_is_refused(served: RunningServer, weight: float) -> None:
    """It would be infinite or zero without a word; other formats hold it."""
    options = pb.EmbeddingOptions(format=pb.EMBEDDING_FORMAT_PACKED_FLOAT16, skip_normalization=True)
    other = pb.EmbeddingOptions(format=pb.EMBEDDING_FORMAT_PACKED_INT8, skip_normalization=True)

    error = await refused(
        served.stub.EmbedQuery(query_request([text("a", weight)], embedding_options=options))
    )
    await served.stub.EmbedQuery(query_request([text("a", weight)], embedding_options=other))

    assert (error.reason, error.fields) == ("ARGUMENT_INVALID", ["embedding_options.format"])


async def test_items_of_a_stream_fail_by_themselves(served: RunningServer) -> None:
    """A stream carries queries like any other request."""
    requests = [
        pb.StreamInferRequest(correlation_id="good", embed_query=query_request([text("a"), image(b"b")])),
        pb.StreamInferRequest(correlation_id="bad", embed_query=query_request([text("a", 0.0)])),
    ]

    answers = {answer.correlation_id: answer for answer in await infer(served, requests)}

    assert len(answers["good"].embed_query.embeddings) == 1
    assert read_status(answers["bad"].error)[2:4] == ("QUERY_INVALID", ["queries[0].terms[0].weight"])


async def test_a_cancelled_call_frees_its_places_in_both_queues(served: RunningServer) -> None:
    """Its items never run."""
    served.encoder.gate.clear()
    plug = asyncio.ensure_future(served.stub.EmbedText(text_request("plug")))
    await until(lambda: len(served.encoder.batches) == 1)
    doomed = served.stub.EmbedQuery(query_request([image(b"doomed"), text("doomed")]))
    await until(lambda: served.waiting("text") == served.waiting("image") == 1)

    doomed.cancel()
    await until(lambda: served.waiting("text") == served.waiting("image") == 0)
    served.encoder.gate.set()
    await plug

    assert len(served.encoder.batches) == 1
