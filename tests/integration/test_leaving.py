"""Callers that leave: if cancelled, expired or killed while queued, their work never reaches the device."""

from __future__ import annotations

import asyncio
import sys

import grpc
import pytest

from tests.integration.serving import (
    RunningServer,
    classify_request,
    image_request,
    refusal_of,
    text_request,
    until,
)


async def hold_device(served: RunningServer) -> asyncio.Task[object]:
    """Fills the only lane with a text until the encoder's gate opens."""
    served.encoder.gate.clear()
    plug = asyncio.ensure_future(served.stub.EmbedText(text_request("plug")))
    await until(lambda: len(served.encoder.batches) == 1)
    return plug


def reached_device(served: RunningServer) -> set[bytes]:
    """Returns the keys of all entries that reached the device."""
    return {key for batch in served.encoder.batches for key in batch.keys}


async def test_a_cancelled_call_frees_its_place_and_its_neighbours_succeed(served: RunningServer) -> None:
    """Cancelling a queued call is immediate and affects no other call."""
    plug = await hold_device(served)
    doomed = served.stub.EmbedText(text_request("doomed"))
    neighbour = asyncio.ensure_future(served.stub.EmbedText(text_request("neighbour")))
    await until(lambda: served.waiting("text") == 2)

    doomed.cancel()
    await until(lambda: served.waiting("text") == 1)
    served.encoder.gate.set()
    await asyncio.gather(plug, neighbour)

    assert served.encoder.key("doomed") not in reached_device(served)
    assert served.sample("alignserve_batch_size_sum", modality="text") == 2
    assert served.items("text") == {
        "accepted": 3, "in_flight": 0, "ok": 2, "failed": 0, "cancelled": 1, "expired": 0,
    }  # fmt: skip


async def test_an_expired_call_is_answered_while_the_device_is_busy(served: RunningServer) -> None:
    """A timer enforces the deadline, not the next batch."""
    plug = await hold_device(served)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.EmbedText(text_request("late"), timeout=0.05)
    await until(lambda: served.waiting("text") == 0)
    served.encoder.gate.set()
    await plug

    assert refusal_of(caught.value).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert served.encoder.key("late") not in reached_device(served)
    await until(lambda: served.items("text")["in_flight"] == 0)
    assert served.items("text")["expired"] == 1
    assert served.items("text")["accepted"] == 2


@pytest.mark.parametrize(
    "call",
    [
        "stub.EmbedText(text)",
        "ids = map(str, itertools.count())\n"
        "list(stub.StreamInfer(pb.StreamInferRequest(correlation_id=i, embed_text=text) for i in ids))",
    ],
    ids=["unary", "stream"],
)
async def test_a_killed_client_leaves_nothing_in_the_queue(served: RunningServer, call: str) -> None:
    """Killing a client with SIGKILL frees the places of its call, or of all items of its stream."""
    plug = await hold_device(served)
    code = (
        "import grpc, itertools, sys\n"
        "from alignserve.v1 import align_service_pb2 as pb, align_service_pb2_grpc as g\n"
        "stub = g.AlignServiceStub(grpc.insecure_channel(sys.argv[1]))\n"
        f"text = pb.EmbedTextRequest(texts=['killed'])\n{call}"
    )
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, f"127.0.0.1:{served.server.port}"
    )
    await until(lambda: served.waiting("text") >= 1)

    client.kill()
    await client.wait()
    await until(lambda: served.waiting("text") == served.items("text")["in_flight"] - 1 == 0)
    served.encoder.gate.set()
    await plug

    assert served.encoder.key("killed") not in reached_device(served)
    await until(lambda: served.items("text")["in_flight"] == 0)
    account = served.items("text")
    assert account["accepted"] - account["cancelled"] == account["ok"] == 1


async def test_half_of_many_queued_calls_cancelled_leaves_exactly_the_other_half(
    served: RunningServer,
) -> None:
    """Item counts add up when callers leave in the middle of the queue."""
    plug = await hold_device(served)
    calls = [served.stub.EmbedImage(image_request(f"image {i}".encode())) for i in range(200)]
    await until(lambda: served.waiting("image") == 200)

    for call in calls[::2]:
        call.cancel()
    await until(lambda: served.waiting("image") == 100)
    served.encoder.gate.set()
    await asyncio.gather(plug, *calls[1::2])

    assert served.sample("alignserve_batch_size_sum", modality="image") == 100
    assert served.items("image") == {
        "accepted": 200, "in_flight": 0, "ok": 100, "failed": 0, "cancelled": 100, "expired": 0,
    }  # fmt: skip


async def test_a_cancelled_classify_removes_its_labels_from_the_queue(served: RunningServer) -> None:
    """Label prompts that no call waits for any longer are not embedded."""
    plug = await hold_device(served)
    call = served.stub.Classify(classify_request(b"x", "cat", "dog"))
    await until(lambda: served.waiting("image") == 1 and served.waiting("text") == 2)

    call.cancel()
    await until(lambda: served.waiting("image") == served.waiting("text") == 0)
    served.encoder.gate.set()
    await plug

    assert served.sample("alignserve_batch_size_sum", modality="text") == 1
    assert served.items("text")["in_flight"] == served.items("image")["in_flight"] == 0


async def test_a_coalesced_label_survives_its_first_caller(served: RunningServer) -> None:
    """Two calls share one embedding of a label, and the first may leave."""
    plug = await hold_device(served)
    first = served.stub.Classify(classify_request(b"x", "cat"))
    await until(lambda: served.waiting("text") == 1)
    second = asyncio.ensure_future(served.stub.Classify(classify_request(b"y", "cat")))
    await until(lambda: served.sample("alignserve_label_cache_coalesced_total") == 1)

    first.cancel()
    await until(lambda: served.waiting("image") == 1)
    served.encoder.gate.set()
    response = await second
    await plug

    assert response.results[0].classifications[0].label == "cat"


async def test_cancelled_streams_leave_nothing_behind(served: RunningServer) -> None:
    """Cancelling a stream removes all its items from the queue."""
    from alignserve.v1 import align_service_pb2 as pb

    plug = await hold_device(served)
    call = served.stub.StreamInfer()
    for i in range(20):
        await call.write(
            pb.StreamInferRequest(correlation_id=str(i), embed_text=text_request(f"streamed {i}"))
        )
    await until(lambda: served.waiting("text") == 20)

    call.cancel()
    await until(lambda: served.waiting("text") == 0)
    served.encoder.gate.set()
    await plug

    assert served.sample("alignserve_batch_size_sum", modality="text") == 1
    await until(lambda: served.items("text")["in_flight"] == 0)
    assert served.items("text")["cancelled"] == 20
