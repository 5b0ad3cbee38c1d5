"""A response too large for its caller is refused before any work, in calls and in streams."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from alignserve import AsyncClient, ClassifyItem
from alignserve.v1 import align_service_pb2 as pb
from alignserve_server.model.fake import FakeEncoder

from tests.integration.serving import (
    RunningServer,
    classify_request,
    read_status,
    refused,
    running,
    text_request,
)

KEY = "alignserve-max-response-bytes"
MIB = 1 << 20
LABELS = [f"{position:085}" for position in range(1000)]


def seven_megabytes() -> pb.ClassifyRequest:
    """Builds a request of 85 kB whose response has 7 MB."""
    images = [pb.Image(content=bytes([i])) for i in range(1, 65)]
    return pb.ClassifyRequest(images=images, labels=LABELS)


def half_a_megabyte() -> pb.ClassifyRequest:
    return pb.ClassifyRequest(images=[pb.Image(content=bytes([i])) for i in range(1, 6)], labels=LABELS)


def wide(texts: int) -> pb.EmbedTextRequest:
    """Builds a request for embeddings of 1 MiB each, by an encoder of 262,144 dimensions."""
    return text_request(*["a"] * texts)


async def test_a_default_client_is_told_to_set_top_k(served: RunningServer) -> None:
    """64 images with 1,000 long labels fail with their own reason, before any work."""
    error = await refused(served.stub.Classify(seven_megabytes()))

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "LABELS_INVALID")
    assert error.fields == ["labels"]
    assert "limit 4194304; set top_k" in error.message
    assert KEY in error.message
    assert served.encoder.batches == []
    assert served.items("image")["accepted"] == served.items("text")["accepted"] == 0


async def test_with_top_k_the_same_request_is_answered(served: RunningServer) -> None:
    """Scores that top_k omits do not count."""
    request = seven_megabytes()
    request.top_k = 500

    response = await served.stub.Classify(request)

    assert 3 * MIB < response.ByteSize() <= 4 * MIB


async def test_a_caller_that_accepts_more_gets_more() -> None:
    """The limit is that of the server, if the channel accepts it and the metadata says so."""
    async with running() as served:
        target = f"127.0.0.1:{served.server.port}"
        options = [("grpc.max_receive_message_length", 8 * MIB), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(target, options) as channel:
            classify: Any = channel.unary_unary(
                "/alignserve.v1.AlignService/Classify",
                request_serializer=pb.ClassifyRequest.SerializeToString,
            )
            answer = await classify(seven_megabytes(), metadata=[(KEY, str(8 * MIB))])
            error = await refused(classify(seven_megabytes(), metadata=[(KEY, str(6 * MIB))]))

        assert 6 * MIB < len(answer) < 8 * MIB
        assert "limit 6291456" in error.message


async def test_no_caller_gets_more_than_the_servers_limit() -> None:
    """`max_response_bytes` applies whatever the caller accepts; metadata cannot raise it."""
    async with running(max_response_bytes=100_000) as served:
        error = await refused(served.stub.Classify(half_a_megabyte(), metadata=[(KEY, str(1 << 30))]))
        info = await served.stub.GetModelInfo(pb.GetModelInfoRequest())

        assert error.reason == "LABELS_INVALID"
        assert error.message.endswith("limit 100000; set top_k or send fewer images")
        assert info.max_response_bytes == 100_000


async def test_embeddings_of_many_dimensions_are_refused_too() -> None:
    """Images and texts get BATCH_TOO_LARGE; half precision takes half the bytes."""
    encoder = FakeEncoder(embedding_dimension=MIB // 4, is_recording=True)
    async with running(encoder) as served:
        texts = await refused(served.stub.EmbedText(wide(4)))
        request = pb.EmbedImageRequest(images=[pb.Image(content=b"x")] * 4)
        images = await refused(served.stub.EmbedImage(request))
        ran = list(encoder.batches)
        request.embedding_options.format = pb.EMBEDDING_FORMAT_PACKED_FLOAT16
        halves = await served.stub.EmbedImage(request)

        assert [(error.reason, error.fields) for error in (texts, images)] == [
            ("BATCH_TOO_LARGE", ["texts"]),
            ("BATCH_TOO_LARGE", ["images"]),
        ]
        assert ran == []
        assert len(halves.embeddings) == 4


async def test_an_item_with_a_too_large_response_fails_by_itself(served: RunningServer) -> None:
    """The stream stays open; its metadata sets the limit for all its items."""
    items = [
        pb.StreamInferRequest(correlation_id="first", embed_text=text_request("a")),
        pb.StreamInferRequest(correlation_id="large", classify=half_a_megabyte()),
        pb.StreamInferRequest(correlation_id="last", classify=classify_request(b"x", "cat", "dog")),
    ]

    answers = {
        answer.correlation_id: answer
        async for answer in served.stub.StreamInfer(iter(items), metadata=[(KEY, "100000")])
    }

    assert read_status(answers["large"].error)[2:4] == ("LABELS_INVALID", ["labels"])
    assert answers["first"].HasField("embed_text")
    assert answers["last"].HasField("classify")


async def test_a_stream_without_metadata_gets_the_default_limit(served: RunningServer) -> None:
    """One larger answer would cost a default client the whole stream."""
    items = [
        pb.StreamInferRequest(correlation_id="large", classify=seven_megabytes()),
        pb.StreamInferRequest(correlation_id="small", classify=half_a_megabyte()),
    ]

    answers = {answer.correlation_id: answer async for answer in served.stub.StreamInfer(iter(items))}

    assert read_status(answers["large"].error)[2] == "LABELS_INVALID"
    assert answers["small"].HasField("classify")


async def test_an_id_of_megabytes_is_not_echoed_whole(served: RunningServer) -> None:
    """It is refused, in a message that every client can receive, and the stream continues."""
    items = [
        pb.StreamInferRequest(correlation_id="i" * (5 * MIB), embed_text=text_request("a")),
        pb.StreamInferRequest(correlation_id="next", embed_text=text_request("a")),
    ]

    answers = [answer async for answer in served.stub.StreamInfer(iter(items))]

    refusal, answer = sorted(answers, key=lambda each: each.HasField("embed_text"))
    assert read_status(refusal.error)[2] == "CORRELATION_ID_INVALID"
    assert refusal.correlation_id == "i" * 1024
    assert answer.HasField("embed_text")


@pytest.mark.parametrize("value", ["much", "0", "-1", ""])
async def test_an_invalid_limit_is_refused_in_calls_and_streams(served: RunningServer, value: str) -> None:
    """It is not replaced by the default."""
    metadata = [(KEY, value)]
    by_call = await refused(served.stub.EmbedText(text_request("a"), metadata=metadata))
    # It sends no item: grpc.aio replaces a status that arrives while it sends by INTERNAL.
    by_stream = await refused(served.stub.StreamInfer(metadata=metadata).read())

    for error in (by_call, by_stream):
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ARGUMENT_INVALID")
        assert KEY in error.message


async def test_the_python_clients_accept_large_responses() -> None:
    """Both announce their channel's limit, in calls and in streams, or less if an option says so."""
    images = [bytes([i]) for i in range(1, 65)]
    async with running() as served:
        target = f"127.0.0.1:{served.server.port}"
        async with AsyncClient(target) as client:
            found = await client.classify(images, LABELS)
            item = ClassifyItem(b"x", ["l" * 32_000 + str(i) for i in range(200)], id="item")
            (result,) = [each async for each in client.stream([item])]
        small = [("grpc.max_receive_message_length", MIB)]
        async with AsyncClient(target, options=small) as client:
            with pytest.raises(Exception, match="limit 1048576; set top_k"):
                await client.classify(images, LABELS)

        assert [len(labels) for labels in found] == [1000] * 64
        assert len(result.classifications) == 200


async def test_no_answer_about_the_server_is_too_large_for_a_default_client(served: RunningServer) -> None:
    """GetModelInfo has no response that could exceed the limit."""
    info = await served.stub.GetModelInfo(pb.GetModelInfoRequest())

    assert info.ByteSize() < 4096
    assert info.max_response_bytes == 16 * MIB
