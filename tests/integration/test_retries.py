"""Which refusals gRPC's built-in retry policy repeats, tested with grpcio."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

from tests.integration.serving import RunningServer, refused, running, text_request, until

ATTEMPTS = 3


@asynccontextmanager
async def retrying(served: RunningServer, *codes: str) -> AsyncIterator[pb_grpc.AlignServiceAsyncStub]:
    """Yields a stub on a channel that makes three attempts at calls that end with one of the codes."""
    policy = {
        "maxAttempts": ATTEMPTS,
        "initialBackoff": "0.010s",  # at 1 ms, grpcio sometimes draws 0 ms and hangs
        "maxBackoff": "0.010s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": codes,
    }
    config = {"methodConfig": [{"name": [{}], "retryPolicy": policy}]}
    options = [("grpc.service_config", json.dumps(config)), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served.server.port}", options) as channel:
        yield pb_grpc.AlignServiceStub(channel)


@asynccontextmanager
async def full(served: RunningServer, waiting: int) -> AsyncIterator[None]:
    """Keeps the device and the text queue full for the length of the block."""
    served.encoder.gate.clear()
    plug = asyncio.ensure_future(served.stub.EmbedText(text_request("plug")))
    await until(lambda: served.encoder.batches != [])
    texts = asyncio.ensure_future(served.stub.EmbedText(text_request(*[f"w {i}" for i in range(waiting)])))
    await until(lambda: served.waiting("text") == waiting)
    try:
        yield
    finally:
        served.encoder.gate.set()
        await asyncio.gather(plug, texts)


async def test_a_policy_for_restarts_does_not_retry_on_a_full_server() -> None:
    """The caller learns at once; there is no trailer, because some clients retry any call with one."""
    async with running(max_queue_size=4, max_client_batch_size=4) as served:
        async with full(served, 4), retrying(served, "UNAVAILABLE") as stub:
            error = await refused(stub.EmbedText(text_request("one too many")))

        assert error.reason == "QUEUE_FULL"
        assert error.retry_delay_seconds is not None
        assert "grpc-retry-pushback-ms" not in error.trailers
        assert served.sample("alignserve_rejected_total", reason="QUEUE_FULL") == 1


async def test_a_policy_may_retry_on_a_full_server() -> None:
    """A policy that names RESOURCE_EXHAUSTED uses its own backoff: no pushback stops or delays it."""
    async with running(max_queue_size=4, max_client_batch_size=4) as served:
        async with full(served, 4), retrying(served, "RESOURCE_EXHAUSTED") as stub:
            error = await refused(stub.EmbedText(text_request("one too many")))

        assert error.reason == "QUEUE_FULL"
        assert served.sample("alignserve_rejected_total", reason="QUEUE_FULL") == ATTEMPTS


async def test_a_call_that_would_miss_its_deadline_is_never_repeated_within_it() -> None:
    """Even a policy that names RESOURCE_EXHAUSTED ends, before the deadline and with the reason."""
    async with running(max_batch_size=1) as served:
        for i in range(50):
            await served.stub.EmbedText(text_request(f"warm {i}"))
        served.encoder.batches.clear()
        async with full(served, 19), retrying(served, "UNAVAILABLE", "RESOURCE_EXHAUSTED") as stub:
            refusal = None
            while refusal is None:  # the drain rate falls while the server answers nothing
                call = stub.EmbedText(text_request("hasty"), timeout=0.3)
                refusal = await call.code()
                refusal = None if refusal is grpc.StatusCode.DEADLINE_EXCEEDED else refusal
            error = await refused(call)

        assert error.reason == "WOULD_MISS_DEADLINE"
        assert error.trailers["grpc-retry-pushback-ms"] == "-1"
        assert served.sample("alignserve_rejected_total", reason="WOULD_MISS_DEADLINE") == 1


async def test_a_stopping_server_is_retried_after_its_delay() -> None:
    """UNAVAILABLE carries the delay of RetryInfo, and is retried."""
    async with running() as served, retrying(served, "UNAVAILABLE") as stub:
        await served.server.drain(0.0)

        error = await refused(stub.EmbedText(text_request("a")))

        assert error.reason == "SHUTTING_DOWN"
        assert int(error.trailers["grpc-retry-pushback-ms"]) == round(1000 * (error.retry_delay_seconds or 0))
        assert served.sample("alignserve_rejected_total", reason="SHUTTING_DOWN") == ATTEMPTS


async def test_a_stream_that_is_repeated_at_once_does_not_hang() -> None:
    """A policy that names streams reopens a stream that expired before its first item."""
    async with running(max_stream_age_seconds=0.05) as served, retrying(served, "UNAVAILABLE") as stub:
        call = stub.StreamInfer(timeout=10)

        error = await refused(call.read())

        assert error.reason == "STREAM_AGED"
        assert served.sample("alignserve_rejected_total", reason="STREAM_AGED") == ATTEMPTS
