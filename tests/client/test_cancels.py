"""A call cancelled by the server is retried like a broken connection; one cancelled by the client is not.

The server here is a bare one of grpc.aio, which does what servers do in the moment in which they stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import alignserve
import grpc
import numpy as np
import pytest
from alignserve import AsyncClient, Client, RetryPolicy, TextItem
from alignserve._bench.load import ClosedLoop
from alignserve._bench.runner import RunLength, measure
from alignserve._bench.workload import EMBED_TEXT, UnaryRequest
from alignserve._health import HEALTH_SERVICE
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from google.protobuf import any_pb2, wrappers_pb2
from google.rpc import error_details_pb2, status_pb2

from tests.integration.serving import until

CALLERS = 64
CANCELLED = grpc.StatusCode.CANCELLED
SOON = RetryPolicy(initial_backoff_seconds=0.001)

Abort = Callable[[Any], Awaitable[None]]


@dataclass
class BareServer(pb_grpc.AlignServiceServicer):
    """Aborts the first calls, and answers later ones."""

    abort: Abort
    ends: int = 0
    received: int = 0
    target: str = ""
    server: Any = None  # grpc.aio.Server
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    limits: pb.GetModelInfoResponse = field(
        default_factory=lambda: pb.GetModelInfoResponse(
            embedding_dimension=2, max_client_batch_size=4, max_request_bytes=1 << 20
        )
    )

    async def GetModelInfo(self, request: Any, context: Any) -> pb.GetModelInfoResponse:
        return self.limits

    async def EmbedText(self, request: pb.EmbedTextRequest, context: Any) -> pb.EmbedTextResponse:
        await self._end(context)
        await self.gate.wait()
        return embedded(len(request.texts))

    async def StreamInfer(self, requests: Any, context: Any) -> AsyncIterator[pb.StreamInferResponse]:
        async for request in requests:
            if request.WhichOneof("request"):
                await self._end(context)
                yield pb.StreamInferResponse(correlation_id=request.correlation_id, embed_text=embedded(1))

    async def check(self, request: bytes, context: Any) -> bytes:
        await self._end(context)
        return wrappers_pb2.Int32Value(value=1).SerializeToString()

    async def _end(self, context: Any) -> None:
        self.received += 1
        if self.received <= self.ends:
            await self.abort(context)


def embedded(count: int) -> pb.EmbedTextResponse:
    vector = np.ones(2, np.float32).tobytes()
    return pb.EmbedTextResponse(
        embeddings=[pb.Embedding(packed_float32=vector)] * count, tokenizations=[pb.Tokenization()] * count
    )


@asynccontextmanager
async def bare_server(abort: Abort, ends: int = 0, *, is_open: bool = True) -> AsyncIterator[BareServer]:
    bare = BareServer(abort, ends)  # type: ignore[abstract]  # what it lacks is UNIMPLEMENTED
    if is_open:
        bare.gate.set()
    bare.server = grpc.aio.server()
    pb_grpc.add_AlignServiceServicer_to_server(bare, bare.server)
    health: Any = grpc.unary_unary_rpc_method_handler(bare.check)  # Any: an asynchronous one
    bare.server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(HEALTH_SERVICE, {"Check": health})]
    )
    bare.target = f"127.0.0.1:{bare.server.add_insecure_port('127.0.0.1:0')}"
    await bare.server.start()
    try:
        yield bare
    finally:
        bare.gate.set()
        await bare.server.stop(None)


async def cancel(context: Any) -> None:
    """Cancels like a stopping server: without reason or details."""
    await context.abort(CANCELLED, "")


async def break_off(context: Any) -> None:
    """Breaks like a connection that is cut after the headers, which gRPC itself does not retry."""
    await context.send_initial_metadata(())
    await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


async def be_gone(context: Any) -> None:
    """Fails like an unreachable server, with enough callers that gRPC stops retrying."""
    await context.abort(grpc.StatusCode.UNAVAILABLE, "")


ABORTS = {"cancelled": cancel, "broken off": break_off, "unavailable": be_gone}


async def embed_blocking(client: Client, pool: ThreadPoolExecutor, text: str) -> Any:
    return await asyncio.get_running_loop().run_in_executor(pool, client.embed_text, text)


@pytest.mark.parametrize("abort", ABORTS.values(), ids=ABORTS)
async def test_calls_that_a_server_ends_are_repeated(abort: Abort) -> None:
    """64 concurrent callers are affected, and no call fails."""
    async with bare_server(abort, CALLERS) as server, AsyncClient(server.target) as client:
        found = await asyncio.gather(*(client.embed_text(str(number)) for number in range(CALLERS)))

    assert [vector.shape for vector in found] == [(2,)] * CALLERS
    assert server.received >= 2 * CALLERS


@pytest.mark.parametrize("abort", ABORTS.values(), ids=ABORTS)
async def test_calls_of_threads_that_a_server_ends_are_repeated(abort: Abort) -> None:
    """The blocking client behaves the same."""
    with ThreadPoolExecutor(CALLERS) as pool:
        async with bare_server(abort, CALLERS) as server:
            with Client(server.target) as client:
                found = await asyncio.gather(
                    *(embed_blocking(client, pool, str(number)) for number in range(CALLERS))
                )

    assert [vector.shape for vector in found] == [(2,)] * CALLERS


async def test_no_call_is_lost_with_a_server_that_stops() -> None:
    """With two servers behind one name, one stops during calls of 64 callers, and no call fails."""
    with ThreadPoolExecutor(CALLERS) as pool:
        async with (
            bare_server(cancel, is_open=False) as stopping,
            bare_server(cancel, is_open=False) as other,
        ):
            name = f"ipv4:{stopping.target},{other.target}"
            async with AsyncClient(name) as client:
                with Client(name) as blocking:
                    calls = [asyncio.ensure_future(client.embed_text(str(n))) for n in range(CALLERS)]
                    calls += [
                        asyncio.ensure_future(embed_blocking(blocking, pool, str(n))) for n in range(CALLERS)
                    ]
                    await until(lambda: stopping.received + other.received == len(calls))
                    met = stopping.received

                    await stopping.server.stop(0)
                    other.gate.set()
                    found = await asyncio.gather(*calls, return_exceptions=True)

    assert met > 0
    assert [each for each in found if isinstance(each, BaseException)] == []


async def test_a_list_and_a_stream_that_a_server_cancels_go_on() -> None:
    """Each request, and each item without an answer, is sent again."""
    async with bare_server(cancel, 5) as server, AsyncClient(server.target, retry=SOON) as client:
        rows = await client.embed_text([str(number) for number in range(40)])
        server.received = 0
        results = [r async for r in client.stream([TextItem(str(number)) for number in range(5)])]

    assert rows.shape == (40, 2)
    assert [result.error for result in results] == [None] * 5


async def test_a_list_and_a_stream_of_threads_that_a_server_cancels_go_on() -> None:
    """The blocking client behaves the same."""
    async with bare_server(cancel, 5) as server:
        with Client(server.target, retry=SOON) as client:
            rows = await asyncio.to_thread(client.embed_text, [str(number) for number in range(40)])
            server.received = 0
            items = [TextItem(str(number)) for number in range(5)]
            results = await asyncio.to_thread(lambda: list(client.stream(items)))

    assert rows.shape == (40, 2)
    assert [result.error for result in results] == [None] * 5


async def test_a_server_that_always_cancels_is_unavailable() -> None:
    """Attempts are limited as for UNAVAILABLE, and the error does not blame the client."""
    retry = RetryPolicy(max_attempts=3, initial_backoff_seconds=0.001)
    async with bare_server(cancel, 1000) as server, AsyncClient(server.target, retry=retry) as client:
        with pytest.raises(alignserve.UnavailableError, match="the server cancelled the call"):
            await client.embed_text("a")

    assert server.received == 3


async def test_a_cancel_is_not_repeated_beyond_the_deadline(time: Any) -> None:
    """A pause that would outlast the deadline is not started."""
    retry = RetryPolicy(initial_backoff_seconds=4)
    async with (
        bare_server(cancel, 1000) as server,
        AsyncClient(server.target, retry=retry, _clock=time.clock()) as client,
    ):
        with pytest.raises(alignserve.UnavailableError):
            await client.embed_text("a", timeout_seconds=7)

    assert time.sleeps == [4.0]


async def test_a_health_check_that_is_cancelled_means_not_ready() -> None:
    """A stopping server is not ready; checking it does not raise."""
    async with bare_server(cancel, 2) as server, AsyncClient(server.target) as client:
        with Client(server.target) as blocking:
            answers = [await client.is_ready(), await asyncio.to_thread(blocking.is_ready)]

            await client.wait_until_ready(5)

    assert answers == [False, False]


async def test_waiting_for_readiness_outlasts_a_server_that_stops() -> None:
    """The wait checks again, as for a server that cannot be reached."""
    async with bare_server(cancel, 1) as server:
        with Client(server.target) as client:
            await asyncio.to_thread(client.wait_until_ready, 30)

    assert server.received == 2


@pytest.mark.parametrize("streams", [0, 1], ids=["unary", "stream"])
async def test_bench_names_a_cancel_of_the_server_as_such(streams: int) -> None:
    """The bench does not retry, and reports an unavailable server, not a cancellation."""
    request = pb.EmbedTextRequest(texts=["a"]).SerializeToString()
    async with bare_server(cancel, 1) as server:
        found = await measure(
            server.target,
            iter([UnaryRequest(EMBED_TEXT, request)] * 2),
            ClosedLoop(1),
            RunLength(10),
            streams=streams,
        )

    assert {key: each.count for key, each in found.failures.items()} == {("UNAVAILABLE", ""): 1}
    assert found.succeeded == 1


async def test_delays_come_from_retry_info_and_not_from_the_pushback(time: Any) -> None:
    """A pushback that forbids gRPC's own retries does not affect the client's, which obey RetryInfo."""

    async def refuse(context: Any) -> None:
        context.set_trailing_metadata(
            [
                ("grpc-status-details-bin", asking_for(7).SerializeToString()),
                ("grpc-retry-pushback-ms", "-1"),
            ]
        )
        await context.abort(grpc.StatusCode.UNAVAILABLE, "loading")

    async with (
        bare_server(refuse, 2) as server,
        AsyncClient(server.target, _clock=time.clock()) as client,
    ):
        vector = await client.embed_text("a")

    assert vector.shape == (2,)
    assert time.sleeps == [7.0, 7.0]


def asking_for(seconds: int) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason="MODEL_LOADING", domain="alignserve.v1")
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromSeconds(seconds)
    status = status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="loading")
    for detail in (info, retry):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


class CancellingInterceptor(grpc.UnaryUnaryClientInterceptor):
    """Cancels calls on this side, like a tool's timeout."""

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        call = continuation(client_call_details, request)
        if "EmbedText" in str(client_call_details.method):
            call.cancel()
        return call


async def test_a_cancel_by_an_interceptor_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls cancelled on this side are not retried."""
    plain = grpc.insecure_channel
    monkeypatch.setattr(
        grpc, "insecure_channel", lambda *args: grpc.intercept_channel(plain(*args), CancellingInterceptor())
    )
    async with bare_server(cancel, is_open=False) as server:
        with Client(server.target) as client:
            await asyncio.to_thread(client.model_info)

            with pytest.raises(alignserve.CallCancelledError):
                await asyncio.to_thread(client.embed_text, ["a"] * 10, timeout_seconds=10)

    assert server.received <= 3


async def test_a_stream_that_is_cancelled_on_this_side_ends() -> None:
    """If another tool closes the channel during a stream, the reader does not hang."""
    async with bare_server(cancel, is_open=False) as server:
        client = AsyncClient(server.target)
        await client.model_info()
        never = asyncio.Event()

        async def items() -> AsyncIterator[alignserve.Item]:
            yield TextItem("a")
            await never.wait()

        stream = client.stream(items())
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)

        await client._channel.close()

        with pytest.raises((alignserve.CallCancelledError, alignserve.UnavailableError)):
            await asyncio.wait_for(waiting, 10)
        await stream.aclose()
        await client.close()
