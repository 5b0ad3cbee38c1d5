"""Streams of the Open Inference Protocol: order, windows, quotas, and ends that lose nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from alignserve_server.access.keys import Scope, changed_keys, new_key
from alignserve_server.model.fake import FakeEncoder

from tests.integration.open_inference import ask, call_of, infer, output, parameters, raw_request, texts
from tests.integration.serving import RunningServer, refusal_of, refused, running, until

STREAM = {
    "grpc_type": "bidi_stream",
    "grpc_service": "inference.GRPCInferenceService",
    "grpc_method": "ModelStreamInfer",
}


def stream_of(served: RunningServer, requests: Any = None, **options: Any) -> Any:
    """Opens a stream, with all its requests, or to write them one by one."""
    return call_of(served.channel, "ModelStreamInfer")(requests, **options)


async def test_responses_have_the_order_of_the_requests(served: RunningServer) -> None:
    """Images and texts run in different batches, and are answered as sent, under their ids."""
    requests = [
        texts(f"text {number}", id=str(number))
        if number % 2
        else raw_request("image", {"image": [f"image {number}".encode()]}, id=str(number))
        for number in range(50)
    ]

    responses = [response async for response in stream_of(served, iter(requests))]

    assert [response.infer_response.id for response in responses] == list(map(str, range(50)))
    assert not any(response.error_message for response in responses)
    for number, response in enumerate(responses):
        given = f"text {number}" if number % 2 else f"image {number}".encode()
        np.testing.assert_allclose(
            output(response.infer_response, "embedding")[0], served.encoder.embedding_of(given), atol=1e-6
        )


async def test_a_request_that_fails_does_not_end_the_stream(served: RunningServer) -> None:
    """Its response has the reason, the field and the id in its text; the others are answered."""
    requests = [
        texts("good", id="a"),
        texts(" ", id="b"),
        raw_request("nothing", {}, id="c"),
        texts("good too", id="d"),
    ]

    good, empty, unknown, last = [response async for response in stream_of(served, iter(requests))]

    assert (good.error_message, last.error_message) == ("", "")
    assert empty.error_message.startswith("TEXT_EMPTY (request 'b'): text[0]: ")
    assert unknown.error_message.startswith("MODEL_UNKNOWN (request 'c'): model_name: ")
    assert (empty.infer_response.id, unknown.infer_response.id) == ("b", "c")
    assert served.sample("alignserve_rejected_total", reason="TEXT_EMPTY") == 1


async def test_a_bug_is_reported_without_its_text(served: RunningServer) -> None:
    """An unexpected error is answered by an id that the log has too."""
    served.encoder.failing.add(served.encoder.key("bad"))

    responses = [response async for response in stream_of(served, iter([texts("bad"), texts("good")]))]

    assert responses[0].error_message.startswith("INFERENCE_FAILED: ")
    assert responses[1].error_message == ""


async def test_the_last_response_is_marked_on_request(served: RunningServer) -> None:
    """`triton_enable_empty_final_response` marks each response as the final one of its request."""
    marked = texts("a", parameters=parameters(triton_enable_empty_final_response=True))
    wrong = texts("c", parameters=parameters(triton_enable_empty_final_response="true"))
    stream = stream_of(served, iter([marked, texts("b"), wrong]))

    first, second, third = [response async for response in stream]

    assert first.infer_response.parameters["triton_final_response"].bool_param
    assert not second.infer_response.parameters
    assert "string_param is not its type; send a boolean" in third.error_message


async def test_a_stream_holds_a_window_of_requests() -> None:
    """Further requests are not read until one is answered."""
    async with running(max_stream_in_flight=4) as served:
        served.encoder.gate.clear()
        read = 0

        async def requests() -> AsyncIterator[Any]:
            nonlocal read
            for number in range(20):
                read += 1
                yield texts(f"text {number}")

        stream = stream_of(served, requests())
        await until(lambda: served.items("text")["in_flight"] >= 4)
        in_flight = served.items("text")["in_flight"]
        served.encoder.gate.set()

        assert in_flight == 4
        assert len([response async for response in stream]) == 20


async def test_drain_answers_what_was_read_and_says_that_the_server_stops(served: RunningServer) -> None:
    """A stop ends a stream like StreamInfer: accepted requests are answered, then SHUTTING_DOWN."""
    served.encoder.gate.clear()
    stream = stream_of(served)
    for number in range(3):
        await stream.write(texts(f"text {number}", id=str(number)))
    await until(lambda: served.items("text")["in_flight"] == 3)

    draining = asyncio.ensure_future(served.server.drain(0.0))
    await draining
    served.encoder.gate.set()
    responses = [await stream.read() for _ in range(3)]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()

    assert [response.infer_response.id for response in responses] == ["0", "1", "2"]
    refusal = refusal_of(caught.value)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    assert refusal.message.startswith("SHUTTING_DOWN: ")


async def test_a_stream_ends_at_its_maximum_age() -> None:
    """On a new stream, load balancers can choose another server."""
    async with running(max_stream_age_seconds=0.05) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream_of(served).read()

    assert refusal_of(caught.value).reason == "STREAM_AGED"


async def test_a_cancelled_stream_leaves_nothing_in_the_queue(served: RunningServer) -> None:
    """A caller that leaves cancels its queued requests."""
    served.encoder.gate.clear()
    stream = stream_of(served, iter([texts(f"text {number}") for number in range(5)]))
    await until(lambda: served.items("text")["in_flight"] == 5)

    stream.cancel()

    await until(lambda: served.waiting("text") == 0)
    served.encoder.gate.set()
    await until(lambda: served.items("text")["in_flight"] == 0)
    await until(lambda: served.sample("grpc_server_handled_total", **STREAM, grpc_code="CANCELLED") == 1)


async def test_requests_of_a_stream_count_for_quotas_and_scopes(tmp_path: Path) -> None:
    """Each needs its model's scope and is charged, so that the key has used its rate afterwards."""
    path = tmp_path / "keys.json"
    with changed_keys(path) as keys:
        key, keys["slow"] = new_key("slow", frozenset({Scope.EMBED}), max_requests_per_second=0.1)
    metadata = [("authorization", f"Bearer {key}")]
    classify = raw_request("classify", {"image": [b"one"], "labels": [b"cat"]}, id="no")
    async with running(api_keys_file=path) as served:
        stream = stream_of(served, iter([classify, texts("text")]), metadata=metadata)
        no, yes = [response async for response in stream]

        refusal = await refused(infer(served.channel, texts("another"), metadata=metadata))

    assert no.error_message.startswith("SCOPE_MISSING (request 'no'): ")
    assert yes.error_message == ""
    assert refusal.reason == "QUOTA_EXCEEDED"


async def test_invalid_requests_of_a_stream_count_for_quotas(tmp_path: Path) -> None:
    """As refused calls do: they take the time of other callers."""
    path = tmp_path / "keys.json"
    with changed_keys(path) as keys:
        key, keys["slow"] = new_key("slow", frozenset({Scope.EMBED}), max_requests_per_second=0.1)
    metadata = [("authorization", f"Bearer {key}")]
    async with running(api_keys_file=path) as served:
        stream = stream_of(served, iter([raw_request("nothing", {})]), metadata=metadata)
        (unknown,) = [response async for response in stream]

        refusal = await refused(infer(served.channel, texts("text"), metadata=metadata))

    assert unknown.error_message.startswith("MODEL_UNKNOWN: ")
    assert refusal.reason == "QUOTA_EXCEEDED"


async def test_an_error_does_not_repeat_a_long_id(served: RunningServer) -> None:
    """Errors that a client does not read would otherwise hold as much memory as their requests had."""
    stream = stream_of(served, iter([texts("a", id="i" * 100_000)]))

    (response,) = [response async for response in stream]

    assert "id: 100000 characters, limit 1024" in response.error_message
    assert response.infer_response.id == "i" * 1024


async def test_timeout_and_priority_hold_for_each_request(served: RunningServer) -> None:
    """A request of a stream can be late without the others being late."""
    served.encoder.gate.clear()
    stream = stream_of(served)
    await stream.write(texts("first"))
    await until(lambda: len(served.encoder.batches) == 1)
    await stream.write(texts("late", id="late", parameters=parameters(timeout=50_000, priority=2)))
    await stream.write(texts("patient", parameters=parameters(timeout=60_000_000)))
    await stream.done_writing()
    await until(lambda: served.items("text")["expired"] == 1)
    served.encoder.gate.set()

    first, late, patient = [response async for response in stream]

    assert (first.error_message, patient.error_message) == ("", "")
    assert late.error_message.startswith("EXPIRED_IN_QUEUE (request 'late'): ")


async def test_statistics_include_streams(served: RunningServer) -> None:
    """Each message counts as a request of its model."""
    requests = [texts("a", "b"), raw_request("image", {"image": [b"c"]}), texts(" ")]
    assert len([response async for response in stream_of(served, iter(requests))]) == 3

    stats = {each.name: each for each in (await ask(served.channel, "ModelStatistics")).model_stats}

    text = stats["text"].inference_stats
    assert (text.success.count, text.fail.count, stats["text"].inference_count) == (1, 1, 2)
    assert stats["image"].inference_count == 1


async def test_large_responses_wait_until_the_client_reads() -> None:
    """The memory of unread responses is bounded for streams of both services together."""
    encoder = FakeEncoder(embedding_dimension=512)
    async with running(encoder, max_response_bytes=1 << 19, max_unread_response_bytes=1 << 20) as served:
        requests = [texts(*(f"{number} {position}" for position in range(64))) for number in range(40)]
        stream = stream_of(served, iter(requests))

        await until(lambda: served.sample("alignserve_unread_response_bytes") > 1 << 18)
        peak = served.sample("alignserve_unread_response_bytes")
        responses = [response async for response in stream]

        assert peak <= 1 << 20
        assert len(responses) == 40
        assert served.sample("alignserve_unread_response_bytes") == 0
