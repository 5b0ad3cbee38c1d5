"""Overload: unary calls are refused at once with a retry delay, and streams wait."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

from tests.integration.serving import classify_request, image_request, refused, running, text_request, until


@pytest.mark.shapes
async def test_a_full_queue_refuses_unary_calls_with_a_retry_delay() -> None:
    """RESOURCE_EXHAUSTED says when to retry, for people and for programs."""
    async with running(max_queue_size=4, max_client_batch_size=4) as served:
        served.encoder.gate.clear()
        plug = asyncio.ensure_future(served.stub.EmbedText(text_request("plug")))
        await until(lambda: len(served.encoder.batches) == 1)
        waiting = asyncio.ensure_future(served.stub.EmbedText(text_request("a", "b", "c", "d")))
        await until(lambda: served.waiting("text") == 4)

        error = await refused(served.stub.EmbedText(text_request("one too many")))
        image = asyncio.ensure_future(served.stub.EmbedImage(image_request(b"other queue")))
        await until(lambda: served.waiting("image") == 1)
        served.encoder.gate.set()
        await asyncio.gather(plug, waiting, image)

        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert error.retry_delay_seconds is not None
        assert 0.02 <= error.retry_delay_seconds <= 40
        assert served.sample("alignserve_rejected_total", reason="QUEUE_FULL") == 1
        assert served.items("text")["accepted"] == 5


async def test_a_queue_is_also_bounded_by_bytes() -> None:
    """A few large images fill the space of many small ones."""
    async with running(max_queue_bytes=2500, max_image_bytes=1000) as served:
        served.encoder.gate.clear()
        plug = asyncio.ensure_future(served.stub.EmbedText(text_request("plug")))
        await until(lambda: len(served.encoder.batches) == 1)
        waiting = [
            asyncio.ensure_future(served.stub.EmbedImage(image_request(b"x" * 900 + bytes([i]))))
            for i in range(2)
        ]
        await until(lambda: served.waiting("image") == 2)

        error = await refused(served.stub.EmbedImage(image_request(b"y" * 900)))
        served.encoder.gate.set()
        await asyncio.gather(plug, *waiting)

        assert error.reason == "QUEUE_FULL"


@pytest.mark.shapes
async def test_a_stream_waits_for_room_and_leaves_some_to_unary_calls() -> None:
    """A bulk stream is paused, not refused, and cannot starve others by filling the queue."""
    async with running(max_queue_size=8, max_client_batch_size=2) as served:
        served.encoder.gate.clear()
        plug = asyncio.ensure_future(served.stub.EmbedText(text_request("plug")))
        await until(lambda: len(served.encoder.batches) == 1)
        call = served.stub.StreamInfer()
        for i in range(20):
            await call.write(pb.StreamInferRequest(correlation_id=str(i), embed_text=text_request(f"s {i}")))
        await until(lambda: served.waiting("text") == 6)  # three quarters of 8

        unary = asyncio.ensure_future(served.stub.EmbedText(text_request("u 1", "u 2")))
        await until(lambda: served.waiting("text") == 8)
        served.encoder.gate.set()
        await call.done_writing()
        answers = [response.WhichOneof("result") async for response in call]
        await asyncio.gather(plug, unary)

        assert answers == ["embed_text"] * 20
        assert served.sample("alignserve_rejected_total", reason="QUEUE_FULL") == 0


async def test_unary_calls_leave_some_room_to_streams_and_labels() -> None:
    """Sustained unary load, which takes every free place, cannot starve callers that wait."""
    async with running(max_queue_size=8, max_client_batch_size=2) as served:
        served.encoder.gate.clear()
        plug = asyncio.ensure_future(served.stub.EmbedText(text_request("plug")))
        await until(lambda: len(served.encoder.batches) == 1)
        unary = [asyncio.ensure_future(served.stub.EmbedText(text_request(f"u {i}"))) for i in range(20)]
        await until(lambda: sum(call.done() for call in unary) == 14)  # refused: three quarters of 8 wait

        call = served.stub.StreamInfer()
        await call.write(pb.StreamInferRequest(correlation_id="a", embed_text=text_request("streamed")))
        await until(lambda: served.waiting("text") == 7)
        classified = asyncio.ensure_future(served.stub.Classify(classify_request(b"x", "label")))
        await until(lambda: served.waiting("text") == 8)
        served.encoder.gate.set()
        await call.done_writing()
        answers = [response.WhichOneof("result") async for response in call]
        await asyncio.gather(plug, classified)
        results = await asyncio.gather(*unary, return_exceptions=True)

        assert answers == ["embed_text"]
        assert sum(isinstance(result, pb.EmbedTextResponse) for result in results) == 6


async def test_a_classify_whose_labels_would_wait_is_refused() -> None:
    """Unary calls do not pile up behind label prompts; calls with cached labels are still served."""
    async with running(max_queue_size=8, max_client_batch_size=2) as served:
        await served.stub.Classify(classify_request(b"x", "known"))
        served.encoder.batches.clear()
        served.encoder.gate.clear()
        plug = asyncio.ensure_future(served.stub.EmbedImage(image_request(b"plug")))
        await until(lambda: len(served.encoder.batches) == 1)
        many = asyncio.ensure_future(
            served.stub.Classify(classify_request(b"x", *(f"label {i}" for i in range(20))))
        )
        few = [
            asyncio.ensure_future(served.stub.Classify(classify_request(b"y%d" % i, f"l {i}")))
            for i in range(4)
        ]
        await until(lambda: served.waiting("text") == 6 and served.waiting("image") == 5)

        error = await refused(served.stub.Classify(classify_request(b"z", "unknown")))
        known = asyncio.ensure_future(served.stub.Classify(classify_request(b"z", "known")))
        await until(lambda: served.waiting("image") == 6)
        served.encoder.gate.set()
        await asyncio.gather(plug, many, known, *few)

        assert error.reason == "QUEUE_FULL"
        assert served.items("image")["accepted"] == 8  # without the refused call's image


async def test_many_label_prompts_wait_for_room() -> None:
    """A label set larger than the queue is embedded piece by piece instead of being refused."""
    async with running(max_queue_size=8, max_client_batch_size=2) as served:
        response = await served.stub.Classify(classify_request(b"x", *(f"label {i}" for i in range(300))))

        assert len(response.results[0].classifications) == 300


async def test_two_modalities_share_one_device() -> None:
    """A backlog of images delays a text by about one batch, not by the backlog."""
    async with running(max_image_batch_size=1) as served:
        served.encoder.gate.clear()
        images = [
            asyncio.ensure_future(served.stub.EmbedImage(image_request(f"{i}".encode()))) for i in range(100)
        ]
        await until(lambda: served.waiting("image") == 99)
        text = asyncio.ensure_future(served.stub.EmbedText(text_request("text")))
        await until(lambda: served.waiting("text") == 1)

        served.encoder.gate.set()
        await asyncio.gather(text, *images)

        position = [batch.modality for batch in served.encoder.batches].index("text")
        assert position <= 2


@pytest.mark.shapes
async def test_a_call_that_would_miss_its_deadline_is_refused_at_once() -> None:
    """The caller still has time to react; the item takes no place, and callers with more time are served."""
    async with running(max_batch_size=1) as served:
        for i in range(50):
            await served.stub.EmbedText(text_request(f"warm {i}"))
        served.encoder.gate.clear()
        waiting = [asyncio.ensure_future(served.stub.EmbedText(text_request(f"w {i}"))) for i in range(20)]
        await until(lambda: served.waiting("text") == 19)
        await asyncio.sleep(0.3)  # the drain rate is that of a server without an answer for this long

        error = await refused(served.stub.EmbedText(text_request("hasty"), timeout=0.1))
        patient = asyncio.ensure_future(served.stub.EmbedText(text_request("patient"), timeout=60))
        await until(lambda: served.waiting("text") == 20)
        served.encoder.gate.set()
        await asyncio.gather(*waiting, patient)

        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "WOULD_MISS_DEADLINE")
        assert error.retry_delay_seconds is not None
        assert served.sample("alignserve_rejected_total", reason="WOULD_MISS_DEADLINE") == 1
        assert served.items("text")["accepted"] == 71


@pytest.mark.shapes
async def test_interactive_calls_overtake_a_bulk_stream() -> None:
    """A call waits for the running batch, but not for the bulk items ahead of it."""
    async with running(max_batch_size=2) as served:
        served.encoder.gate.clear()
        plug = asyncio.ensure_future(served.stub.EmbedText(text_request("plug")))
        await until(lambda: len(served.encoder.batches) == 1)
        bulk = served.stub.StreamInfer(metadata=[("alignserve-priority", "bulk")])
        for i in range(10):
            await bulk.write(pb.StreamInferRequest(correlation_id=str(i), embed_text=text_request(f"b {i}")))
        await until(lambda: served.waiting("text") == 10)
        call = asyncio.ensure_future(served.stub.EmbedText(text_request("urgent")))
        await until(lambda: served.waiting("text") == 11)

        served.encoder.gate.set()
        await asyncio.gather(plug, call)
        await bulk.done_writing()
        answers = [response.WhichOneof("result") async for response in bulk]

        assert answers == ["embed_text"] * 10
        assert served.encoder.batches[1].keys == (served.encoder.key("urgent"),)


async def test_an_unknown_priority_is_refused() -> None:
    """A misspelt priority would otherwise be served as the default one."""
    async with running() as served:
        call = served.stub.EmbedText(text_request("text"), metadata=[("alignserve-priority", "urgent")])

        error = await refused(call)

        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ARGUMENT_INVALID")
        assert "interactive or bulk" in error.message


async def test_a_flood_from_one_host_leaves_others_their_turn() -> None:
    """Another host's call is accepted, and overtakes the waiting calls of the flood."""
    async with running(
        listen="[::]:0", max_queue_size=64, max_client_batch_size=8, max_batch_size=2
    ) as served:
        served.encoder.gate.clear()
        flood = [asyncio.ensure_future(served.stub.EmbedText(text_request(f"f {i}"))) for i in range(200)]
        await until(lambda: sum(call.done() for call in flood) > 100)  # refused
        async with grpc.aio.insecure_channel(f"[::1]:{served.server.port}") as channel:
            other = pb_grpc.AlignServiceStub(channel).EmbedText(text_request("other"))
            queued = served.waiting("text")
            await until(lambda: served.waiting("text") == queued + 1)
            served.encoder.gate.set()
            await other
        await asyncio.gather(*flood, return_exceptions=True)

        position = [served.encoder.key("other") in batch.keys for batch in served.encoder.batches].index(True)
        assert position <= 2
