"""StreamInfer: every item is answered once; failures per item, optional order, flow control."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve_server.model.fake import FakeEncoder

from tests.integration.serving import (
    PACKED,
    RunningServer,
    classify_request,
    image_request,
    read_status,
    refused,
    running,
    text_request,
    until,
)

AS_REQUESTED = pb.StreamOptions(delivery_order=pb.DELIVERY_ORDER_AS_REQUESTED)


def item(number: int) -> pb.StreamInferRequest:
    """Builds the n-th item of a mix: texts, images, classifications, and 5 % broken images."""
    if number % 20 == 7:
        return pb.StreamInferRequest(
            correlation_id=str(number), embed_image=image_request(f"broken {number}".encode())
        )
    if number % 3 == 0:
        return pb.StreamInferRequest(
            correlation_id=str(number), embed_text=text_request(f"text {number} " + "word " * (number % 17))
        )
    if number % 3 == 1:
        return pb.StreamInferRequest(
            correlation_id=str(number), embed_image=image_request(f"image {number}".encode())
        )
    return pb.StreamInferRequest(
        correlation_id=str(number), classify=classify_request(f"image {number}".encode(), "cat", "dog")
    )


async def infer(
    served: RunningServer, requests: Iterable[pb.StreamInferRequest]
) -> list[pb.StreamInferResponse]:
    """Sends requests over one stream and returns its responses in order of arrival."""

    async def send() -> AsyncIterator[pb.StreamInferRequest]:
        for request in requests:
            yield request

    return [response async for response in served.stub.StreamInfer(send())]


@pytest.mark.shapes
@pytest.mark.parametrize("count", [500, pytest.param(5_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("is_ordered", [False, True])
async def test_items_are_answered_once_each(served: RunningServer, is_ordered: bool, count: int) -> None:
    """Broken images fail on their own; order is kept on request; memory stays flat."""
    numbers = range(count)
    requests = (item(number) for number in numbers)
    if is_ordered:
        requests = (request for request in _with_options(requests))
    process = psutil.Process()
    await infer(served, map(item, range(300)))  # warms up allocators and caches
    served.encoder.batches.clear()
    before = process.memory_info().rss

    responses = await infer(served, requests)

    served.encoder.batches.clear()
    grown = process.memory_info().rss - before
    ids = [int(response.correlation_id) for response in responses]
    kinds = Counter(response.WhichOneof("result") for response in responses)
    assert sorted(ids) == list(numbers)
    assert not is_ordered or ids == list(numbers)
    assert kinds["error"] == count // 20
    assert {int(r.correlation_id) % 20 for r in responses if r.WhichOneof("result") == "error"} == {7}
    assert grown < 24 << 20, f"grew by {grown >> 20} MiB, the responses kept by the test included"


def _with_options(requests: Iterable[pb.StreamInferRequest]) -> Iterable[pb.StreamInferRequest]:
    yield pb.StreamInferRequest(stream_options=AS_REQUESTED)
    yield from requests


async def test_each_item_gets_its_own_result(served: RunningServer) -> None:
    """Responses carry the vector of the request with the same id."""
    responses = await infer(served, map(item, range(100)))

    for response in responses:
        number = int(response.correlation_id)
        if response.WhichOneof("result") == "embed_image":
            got = np.frombuffer(response.embed_image.embeddings[0].packed_float32, "<f4")
            expected = served.encoder.embedding_of(f"image {number}".encode())
            np.testing.assert_allclose(got, expected, atol=1e-6)


async def test_a_failed_item_carries_a_full_status(served: RunningServer) -> None:
    """The error inside a stream is as rich as the one that ends a call."""
    request = pb.StreamInferRequest(correlation_id="a", embed_image=image_request(b"fine", b"broken"))

    (response,) = await infer(served, [request])

    code, _, reason, fields, _, _ = read_status(response.error)
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], "IMAGE_UNREADABLE")
    assert fields == ["images[1].content"]


async def test_a_client_that_stops_reading_pauses_the_server() -> None:
    """While the client reads nothing, the server takes no items; once it reads, all are answered."""
    total = 64
    async with running(FakeEncoder(embedding_dimension=8192)) as served:
        call = served.stub.StreamInfer()
        wide = pb.EmbedTextRequest(texts=["a text"] * 64, embedding_options=PACKED)  # the answer takes 2 MiB

        async def write() -> None:
            for number in range(total):
                await call.write(pb.StreamInferRequest(correlation_id=str(number), embed_text=wide))
            await call.done_writing()

        writing = asyncio.ensure_future(write())
        await until(lambda: served.items("text")["ok"] >= 64)
        ok = 0.0
        while ok != served.items("text")["ok"]:  # until several round trips bring no answer
            ok = served.items("text")["ok"]
            for _ in range(20):
                await served.stub.GetModelInfo(pb.GetModelInfoRequest())
        paused_at = served.items("text")["accepted"] / 64
        responses = [response async for response in call]
        await writing

        assert paused_at < total
        assert len(responses) == total


@pytest.mark.shapes
async def test_at_most_a_window_of_items_is_in_flight(served: RunningServer) -> None:
    """A stream cannot take more of the server than `max_stream_in_flight` items."""
    served.encoder.gate.clear()
    call = served.stub.StreamInfer()
    for number in range(100):
        await call.write(
            pb.StreamInferRequest(correlation_id=str(number), embed_text=text_request(f"{number}"))
        )
    await until(lambda: served.items("text")["accepted"] >= 32)
    await served.stub.GetModelInfo(pb.GetModelInfoRequest())  # a round trip, so that the server has run

    in_flight = served.items("text")["in_flight"]
    served.encoder.gate.set()
    await call.done_writing()
    responses = [response async for response in call]

    assert in_flight == 32
    assert len(responses) == 100


@pytest.mark.parametrize(
    ("request_message", "reason"),
    [
        (pb.StreamInferRequest(embed_text=text_request("no id")), "CORRELATION_ID_INVALID"),
        (
            pb.StreamInferRequest(correlation_id="x" * 129, embed_text=text_request("long id")),
            "CORRELATION_ID_INVALID",
        ),
        (pb.StreamInferRequest(correlation_id="nothing to do"), "REQUEST_EMPTY"),
        (
            pb.StreamInferRequest(
                correlation_id="a", stream_options=AS_REQUESTED, embed_text=text_request("x")
            ),
            "ARGUMENT_INVALID",
        ),
    ],
)
async def test_a_bad_item_fails_and_the_stream_continues(
    served: RunningServer, request_message: pb.StreamInferRequest, reason: str
) -> None:
    """Whatever is wrong with an item, the next one is served."""
    first = pb.StreamInferRequest(correlation_id="first", embed_text=text_request("first"))
    last = pb.StreamInferRequest(correlation_id="last", embed_text=text_request("last"))

    responses = await infer(served, [first, request_message, last])

    results = {response.correlation_id: response for response in responses}
    assert read_status(results[request_message.correlation_id].error)[2] == reason
    assert results["first"].HasField("embed_text")
    assert results["last"].HasField("embed_text")


async def test_an_id_may_be_reused_only_after_its_answer(served: RunningServer) -> None:
    """Ids are unique among the items in flight."""
    served.encoder.gate.clear()
    call: Any = served.stub.StreamInfer()
    request = pb.StreamInferRequest(correlation_id="same", embed_text=text_request("x"))
    await call.write(request)
    await call.write(request)

    second = await call.read()
    served.encoder.gate.set()
    first = await call.read()
    await call.write(request)
    third = await call.read()
    await call.done_writing()

    assert read_status(second.error)[2] == "CORRELATION_ID_INVALID"
    assert first.HasField("embed_text")
    assert third.HasField("embed_text")


async def test_an_unknown_order_ends_the_stream(served: RunningServer) -> None:
    """Unsupported options are refused, not ignored."""
    call = served.stub.StreamInfer()
    await call.write(
        pb.StreamInferRequest(stream_options=pb.StreamOptions(delivery_order=pb.DeliveryOrder.ValueType(9)))
    )

    error = await refused(call.read())

    assert (error.reason, error.fields) == ("ARGUMENT_INVALID", ["stream_options.delivery_order"])


async def test_a_malformed_message_ends_the_stream_after_its_answers(served: RunningServer) -> None:
    """Items before the malformed message are answered; then the stream ends with INVALID_ARGUMENT."""
    raw: Any = served.channel.stream_stream(
        "/alignserve.v1.AlignService/StreamInfer",
        response_deserializer=pb.StreamInferResponse.FromString,
    )
    fine = pb.StreamInferRequest(correlation_id="fine", embed_text=text_request("x")).SerializeToString()
    call = raw(iter([fine, b"\xff\xff\xff"]))

    response = await call.read()
    error = await refused(call.read())

    assert response.correlation_id == "fine"
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED")
