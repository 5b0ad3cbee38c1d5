"""A call leaves nothing behind: every kind of call, with every way to end it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
import pytest
from alignserve.v1 import align_service_pb2 as pb
from grpc._cython import cygrpc

from tests.integration.serving import (
    RunningServer,
    classify_request,
    image_request,
    running,
    text_request,
    until,
)

_MAX_QUEUE_SIZE = 64
_DEADLINE_SECONDS = 0.1  # of the calls that must expire
_CALLS = 20  # of which any that stay would be seen
_GAUGES = ("alignserve_items_in_flight", "alignserve_queue_entries", "alignserve_queue_bytes")

Start = Callable[[RunningServer, float | None], Awaitable[object]]


async def _texts(served: RunningServer, timeout: float | None) -> object:
    return await served.stub.EmbedText(text_request("a", "poison", "b"), timeout=timeout)


async def _images(served: RunningServer, timeout: float | None) -> object:
    return await served.stub.EmbedImage(image_request(b"a", b"poison", b"b"), timeout=timeout)


async def _classify(served: RunningServer, timeout: float | None) -> object:
    return await served.stub.Classify(classify_request(b"poison", "a", "poison"), timeout=timeout)


async def _stream(served: RunningServer, timeout: float | None) -> object:
    stream = served.stub.StreamInfer(timeout=timeout)
    try:
        for i, request in enumerate((text_request("a"), text_request("poison"), text_request("b"))):
            await stream.write(pb.StreamInferRequest(correlation_id=str(i), embed_text=request))
        await stream.write(pb.StreamInferRequest(correlation_id="c", classify=classify_request(b"x", "y")))
        await stream.write(pb.StreamInferRequest(correlation_id="i", embed_image=image_request(b"poison")))
        await stream.done_writing()
        return [answer async for answer in stream]
    finally:
        stream.cancel()


def _rpcs_in_flight(served: RunningServer) -> float:
    samples = {"grpc_server_started_total": 1, "grpc_server_handled_total": -1}
    return sum(
        samples.get(sample.name, 0) * sample.value
        for family in served.server.metrics.registry.collect()
        for sample in family.samples
    )


def _gauges(served: RunningServer) -> dict[str, float]:
    return {
        f"{name} {modality}": served.sample(name, modality=modality)
        for name in _GAUGES
        for modality in ("image", "text")
    }


def _is_balanced(served: RunningServer) -> bool:
    accounts = [served.items(modality) for modality in ("image", "text")]
    return all(
        account.pop("accepted") == sum(account.values()) and account["in_flight"] == 0 for account in accounts
    )


@pytest.mark.parametrize("end", ["ok", "cancel", "timeout", "error", "shutdown"])
@pytest.mark.parametrize("start", [_texts, _images, _classify, _stream])
async def test_a_call_leaves_nothing_behind(start: Start, end: str) -> None:
    """Gauges are 0, item counts add up, no task is left, and the queue can be filled again."""
    async with running(max_queue_size=_MAX_QUEUE_SIZE, shutdown_grace_seconds=0.0) as served:
        encoder = served.encoder
        await served.stub.EmbedText(text_request("connect"))
        if end == "error":
            encoder.failing = {encoder.key(key) for key in ("poison", b"poison")}
        else:
            encoder.gate.clear()
        plug = asyncio.ensure_future(_quietly(served.stub.EmbedText(text_request("plug"))))
        await until(lambda: served.encoder.key("plug") in {k for b in encoder.batches for k in b.keys})
        tasks_before = len(asyncio.all_tasks())

        calls = [asyncio.ensure_future(_quietly(start(served, _timeout(end)))) for _ in range(5)]
        if end not in ("error", "timeout"):  # these calls may end before the gauge shows them
            await until(lambda: _gauges(served)["alignserve_items_in_flight image"] > 0 or start is _texts)
            await until(lambda: served.waiting("text") + served.waiting("image") >= 1)
        if end == "cancel":
            for call in calls:
                call.cancel()
        elif end == "shutdown":
            stopping = asyncio.ensure_future(served.server.stop(0.0))
        if end != "timeout":
            encoder.gate.set()
        await asyncio.gather(*calls, return_exceptions=True)
        encoder.gate.set()
        await plug
        if end == "shutdown":
            await stopping
        await until(lambda: _rpcs_in_flight(served) == 0)
        await until(lambda: len(asyncio.all_tasks()) <= tasks_before)

        assert set(_gauges(served).values()) == {0}
        assert _is_balanced(served)
        if end != "shutdown":
            full = [f"full {i}" for i in range(_MAX_QUEUE_SIZE * 3 // 4)]
            response = await served.stub.EmbedText(text_request(*full))
            assert len(response.embeddings) == len(full)


def _timeout(end: str) -> float | None:
    return _DEADLINE_SECONDS if end == "timeout" else None


async def _quietly(call: Awaitable[object]) -> None:
    with suppress(grpc.aio.AioRpcError):
        await call


def _calls_in_memory() -> int:
    return sum(isinstance(each, cygrpc.RPCState) for each in gc.get_objects())


async def _refused(served: RunningServer, timeout: float | None) -> object:
    return await served.stub.EmbedText(text_request(""), timeout=timeout)


async def _malformed(served: RunningServer, timeout: float | None) -> object:
    embed: Any = served.channel.unary_unary("/alignserve.v1.AlignService/EmbedText")
    return await embed(b"\xff", timeout=timeout)


async def _cancelled(served: RunningServer, timeout: float | None) -> object:
    call = served.stub.EmbedText(text_request("a"), timeout=timeout)
    await asyncio.sleep(0)
    call.cancel()
    return await call


@pytest.mark.parametrize("start", [_texts, _images, _classify, _refused, _malformed, _cancelled])
async def test_a_unary_call_needs_no_garbage_collector(start: Start) -> None:
    """Nothing of it is in a reference cycle, however it ends."""
    async with running() as served:
        served.encoder.failing.add(served.encoder.key("poison"))

        gc.collect()
        gc.disable()
        try:
            for _ in range(_CALLS):
                with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                    await start(served, None)
            await until(lambda: _rpcs_in_flight(served) == 0)
            await until(lambda: _calls_in_memory() < _CALLS / 2)  # gRPC may keep the latest one
        finally:
            gc.enable()
