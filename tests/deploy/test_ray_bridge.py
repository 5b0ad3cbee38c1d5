"""A replica's bridge behind Ray Serve's own gRPC server, in one process and without a cluster.

Between them is the proxy's conversion: it makes Ray's context from gRPC's, and gRPC's status from Ray's.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

from deploy.ray.proxy import add_services
from tests.integration.serving import (
    RunningServer,
    classify_request,
    connect,
    refused,
    running,
    text_request,
    until,
)
from tests.integration.test_compare import compare_request
from tests.integration.test_composed_queries import query_request, text

pytestmark = pytest.mark.contract


@pytest.fixture(autouse=True)
def ray() -> None:
    """Skips the tests without Ray Serve; imports it here because it uses deprecated parts of pydantic."""
    if find_spec("ray") is None:
        pytest.skip("no ray; pip install --group ray")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_module("ray.serve")


@dataclass
class Bridged:
    """A server behind the bridge, and a client of the bridge."""

    server: RunningServer
    stub: pb_grpc.AlignServiceAsyncStub


def _handlers(bridge: Any) -> Callable[..., Callable[..., Any]]:
    """Returns the handler factory: the paths from Ray Serve's proxy to a replica and back."""
    from ray.serve._private.proxy_request_response import gRPCStreamingType
    from ray.serve.grpc_util import RayServegRPCContext, gRPCInputStream

    def make(service_method: str, streaming_type: gRPCStreamingType) -> Callable[..., Any]:
        async def unary(request: Any, context: Any) -> bytes:
            passed_on = RayServegRPCContext(context)
            answer = await bridge.answer(service_method.rpartition("/")[2], request, passed_on)
            passed_on._set_on_grpc_context(context)
            return answer.SerializeToString()

        async def stream(requests: Any, context: Any) -> AsyncIterator[bytes]:
            passed_on = RayServegRPCContext(context)
            async for answer in bridge.stream(gRPCInputStream(aiter(requests)), passed_on):
                passed_on._set_on_grpc_context(context)
                yield answer.SerializeToString()

        return stream if streaming_type is gRPCStreamingType.STREAM_STREAM else unary

    return make


@asynccontextmanager
async def bridged(**overrides: Any) -> AsyncIterator[Bridged]:
    """Runs a server behind the bridge."""
    from ray.serve._private.grpc_util import gRPCGenericServer

    from deploy.ray.calls import RayBridge

    async with running(**overrides) as server:
        proxy = gRPCGenericServer(_handlers(RayBridge(server.server)))
        add_services(Mock(), proxy)
        port = proxy.add_insecure_port("127.0.0.1:0")
        await proxy.start()
        async with connect(port) as channel:
            yield Bridged(server, pb_grpc.AlignServiceStub(channel))
        await proxy.stop(None)


async def _plugged(bridged: Bridged) -> asyncio.Future[Any]:
    """Occupies the only lane."""
    bridged.server.encoder.gate.clear()
    plug = asyncio.ensure_future(bridged.server.stub.EmbedText(text_request("plug")))
    await until(lambda: len(bridged.server.encoder.batches) == 1)
    return plug


async def test_unary_answers_and_errors_are_complete() -> None:
    """Callers get answers, limits, and errors with reason and field."""
    async with bridged() as served:
        embedded = await served.stub.EmbedText(text_request("a", "b"))
        classified = await served.stub.Classify(classify_request(b"image", "cat", "dog"))
        compared = await served.stub.Compare(compare_request((b"image", "cat"), (b"image", "dog")))
        query = await served.stub.EmbedQuery(query_request([text("cat"), text("dog", -1.0)]))
        info = await served.stub.GetModelInfo(pb.GetModelInfoRequest())
        error = await refused(served.stub.EmbedText(text_request("a", "")))

        assert len(embedded.embeddings) == 2
        assert len(classified.results[0].classifications) == 2
        assert len(compared.comparisons) == 2
        assert len(query.embeddings) == 1
        assert info.max_labels == served.server.server.service.limits.max_labels
        assert (error.reason, error.fields) == ("TEXT_EMPTY", ["texts[1]"])
        assert served.server.sample("alignserve_unread_response_bytes") == 0


async def test_a_call_that_would_miss_its_deadline_is_refused() -> None:
    """The drain rate falls while nothing is answered; on a busy machine a later call is refused."""
    async with bridged(max_batch_size=1) as served:
        own = served.server
        for number in range(50):
            await own.stub.EmbedText(text_request(f"warm {number}"))
        own.encoder.gate.clear()
        waiting = [asyncio.ensure_future(own.stub.EmbedText(text_request(f"w {i}"))) for i in range(20)]
        await until(lambda: own.waiting("text") == 19)

        reasons = [""]
        while reasons[-1] != "WOULD_MISS_DEADLINE":
            reasons.append((await refused(served.stub.EmbedText(text_request("hasty"), timeout=0.2))).reason)

        own.encoder.gate.set()
        await asyncio.gather(*waiting)


async def test_a_call_leaves_the_queue_at_its_deadline() -> None:
    """The replica counts it as expired, as a standalone server does."""
    async with bridged() as served:
        plug = await _plugged(served)

        error = await refused(served.stub.EmbedText(text_request("late"), timeout=0.2))
        await until(lambda: served.server.items("text")["in_flight"] == 1)

        served.server.encoder.gate.set()
        await plug
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert served.server.items("text")["expired"] == 1


async def test_a_stream_reports_why_it_ends() -> None:
    """Its items are answered, and the client does not see the empty message that carries the status."""
    async with bridged() as served:
        call = served.stub.StreamInfer()
        await call.write(pb.StreamInferRequest(correlation_id="a", embed_text=text_request("a")))
        answer = await call.read()
        assert isinstance(answer, pb.StreamInferResponse)
        served.server.server.messages.drain_streams()
        error = await refused(call.read())

        assert answer.correlation_id == "a"
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert error.retry_delay_seconds is not None


async def test_a_cancelled_stream_leaves_nothing_behind() -> None:
    """Neither items nor an open stream remain."""
    async with bridged() as served:
        plug = await _plugged(served)
        call = served.stub.StreamInfer()
        await call.write(pb.StreamInferRequest(correlation_id="a", embed_text=text_request("a")))
        await until(lambda: served.server.waiting("text") == 1)

        call.cancel()

        await until(lambda: served.server.sample("alignserve_streams") == 0)
        assert served.server.waiting("text") == 0
        served.server.encoder.gate.set()
        await plug
