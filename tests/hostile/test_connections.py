"""Clients that send half a request, read no answer, or open a health watch and stop reading."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.serving.server import Server
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.hostile.raw import framed, raw_client
from tests.integration.serving import RunningServer, connect, running, settings, text_request, until
from tests.integration.test_access import add_key, bearer

pytestmark = pytest.mark.hostile


@pytest.fixture
async def served() -> AsyncIterator[RunningServer]:
    """A server with default settings."""
    async with running() as server:
        yield server


_SERVICE = "/alignserve.v1.AlignService"
_WATCH = "/grpc.health.v1.Health/Watch"
_REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
_METHODS = ("EmbedImage", "EmbedText", "Classify", "GetModelInfo")
_INVALID_ARGUMENT, _DEADLINE_EXCEEDED, _RESOURCE_EXHAUSTED = 3, 4, 8
_UNIMPLEMENTED, _UNAVAILABLE, _UNAUTHENTICATED = 12, 14, 16

Health = health_pb2.HealthCheckResponse


def watch_request(service: str = "") -> bytes:
    return framed(health_pb2.HealthCheckRequest(service=service).SerializeToString())


def served_calls(served: RunningServer, method: str, code: str) -> float:
    """Returns how many calls of a method have ended with a code."""
    return served.sample(
        "grpc_server_handled_total",
        grpc_type="unary",
        grpc_service=_SERVICE[1:],
        grpc_method=method,
        grpc_code=code,
    )


def watches_ended(served: RunningServer) -> float:
    """Returns how many health watches were ended by their clients."""
    return served.sample(
        "grpc_server_handled_total",
        grpc_type="server_stream",
        grpc_service="grpc.health.v1.Health",
        grpc_method="Watch",
        grpc_code="CANCELLED",
    )


# --- health watches


async def test_a_watcher_that_does_not_read_delays_neither_startup_nor_shutdown() -> None:
    """The server becomes ready, other watchers get each change, and the server stops cleanly."""
    server = Server(settings(), lambda _: FakeEncoder())
    await server.start()
    async with raw_client(server.port, window=0) as asleep, connect(server.port) as channel:
        await asleep.call(_WATCH, watch_request())
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        statuses = [(await watch.read()).status]

        await server.load()
        statuses.append((await watch.read()).status)
        await server.drain(0.0)
        await server.stop(5.0)

    assert statuses == [Health.NOT_SERVING, Health.SERVING]


async def test_watchers_stay_when_one_of_them_leaves() -> None:
    """One of three watchers of a service leaves; the others still learn that it is NOT_SERVING."""
    async with running() as served, connect(served.server.port) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
        assert [(await watch.read()).status for watch in watches] == [Health.SERVING] * 3

        watches.pop().cancel()
        await until(lambda: watches_ended(served) == 1)
        draining = asyncio.ensure_future(served.server.drain(0.2))
        statuses = [(await watch.read()).status for watch in watches]
        await draining

    assert statuses == [Health.NOT_SERVING] * 2


async def test_a_slow_watcher_gets_the_latest_status() -> None:
    """Outdated statuses are not kept for it."""
    async with running() as served, raw_client(served.server.port, window=0) as slow:
        watch = await slow.call(_WATCH, watch_request())
        for _ in range(1000):
            served.server._readiness.enter(served.server._readiness.state)
            await asyncio.sleep(0)

        slow.open_window(watch, 1 << 16)
        await slow.until(lambda: len(watch.body) > 0)

    assert bytes(watch.body) == framed(Health(status=Health.SERVING).SerializeToString())


async def test_a_connection_cannot_take_every_watch() -> None:
    """A connection gets half of them; its next watch is refused, and another connection's is served."""
    async with running() as served, raw_client(served.server.port) as greedy:
        calls = [await greedy.call(_WATCH, watch_request()) for _ in range(600)]
        await greedy.until(lambda: all(call.body or call.status is not None for call in calls))

        async with connect(served.server.port) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            status = (await watch.read()).status

    # gRPC may take calls that arrive together in another order
    assert Counter(call.status for call in calls) == {None: 500, _RESOURCE_EXHAUSTED: 100}
    assert status == Health.SERVING


# --- method names


@pytest.mark.parametrize(
    "method",
    [
        "/nobody/Knows",
        f"{_SERVICE}/Nothing",
        b"/\xff",
        f"{_SERVICE}/EmbedText".encode() + b"\x80",
        b"\xc0/\x80",
    ],
)
async def test_an_unknown_method_is_unimplemented(served: RunningServer, method: str | bytes) -> None:
    """Any bytes may be the name, and other callers are unaffected."""
    async with raw_client(served.server.port) as client, connect(served.server.port) as channel:
        begun: Any = pb_grpc.AlignServiceStub(channel).StreamInfer()
        calls = [await client.call(method, framed(b""), ends=ends) for ends in (True, False, True)]
        await client.until(lambda: all(call.is_over for call in calls))

        await begun.write(pb.StreamInferRequest(correlation_id="a", embed_text=text_request("a")))
        answer = await begun.read()

    assert [call.status for call in calls] == [_UNIMPLEMENTED] * 3
    assert answer.HasField("embed_text")


async def test_calls_of_unknown_methods_leave_nothing_behind(served: RunningServer) -> None:
    """This must not need the garbage collector: leftover calls would use up their connection's streams."""
    unknown: Any = served.channel.unary_unary("/nobody/Knows")
    gc.disable()
    try:
        for _ in range(25):
            calls = (unknown(bytes(10)) for _ in range(100))
            answers: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
            assert {answer.code() for answer in answers} == {grpc.StatusCode.UNIMPLEMENTED}
    finally:
        gc.enable()


async def test_a_server_whose_grpc_has_stopped_is_unrecoverable(served: RunningServer) -> None:
    """Its port is closed although the process lives, so that only a restart helps."""
    await served.server._grpc.stop(None)  # as gRPC itself does when a bug ends its loop

    await served.server.wait_until_unrecoverable()


# --- requests that never arrive in full


@pytest.mark.parametrize("method", _METHODS)
@pytest.mark.parametrize(
    "body",
    [b"", framed(b"\x0a\x01a")[:3], framed(b"\x0a\x01a", announced=1000), framed(b"") * 2],
    ids=["no message", "half a header", "half a message", "two messages"],
)
async def test_a_unary_call_without_exactly_one_message_is_answered(
    served: RunningServer, method: str, body: bytes
) -> None:
    """It is malformed and counted as such, and the call ends."""
    async with raw_client(served.server.port) as client:
        call = await client.call(f"{_SERVICE}/{method}", body)
        await client.until(lambda: call.is_over)

    assert call.status == _INVALID_ARGUMENT
    assert served_calls(served, method, "INVALID_ARGUMENT") == 1


@pytest.mark.parametrize("method", _METHODS)
async def test_a_request_that_does_not_arrive_in_time_is_answered(method: str) -> None:
    """A client that starts a message and does not finish it gets DEADLINE_EXCEEDED."""
    async with running(request_timeout_seconds=0.1) as served, raw_client(served.server.port) as client:
        call = await client.call(f"{_SERVICE}/{method}", framed(b"a" * 100, announced=1000), ends=False)
        await client.until(lambda: call.is_over)

        assert call.status == _DEADLINE_EXCEEDED
        assert served_calls(served, method, "DEADLINE_EXCEEDED") == 1
        assert served.sample("alignserve_uploads") == 0


async def test_uploads_that_never_end_leave_room_for_others() -> None:
    """One connection gets half of the concurrent reads; only its own further calls wait."""
    async with running(max_uploads=8) as served, raw_client(served.server.port) as greedy:
        for _ in range(50):
            await greedy.call(f"{_SERVICE}/EmbedText", framed(b"a" * 100, announced=1000), ends=False)
        await until(lambda: served.sample("alignserve_uploads") == 4)

        async with connect(served.server.port) as channel:
            embed: Any = channel.unary_unary(f"{_SERVICE}/EmbedText")
            for _ in range(20):
                await embed(text_request("a").SerializeToString())

        assert served.sample("alignserve_uploads") == 4


async def test_unfinished_requests_without_a_key_do_not_block_others(tmp_path: Path) -> None:
    """Health needs no key: a hundred connections with half a health check delay no caller and no probe."""
    api_keys_file = tmp_path / "keys.json"
    key = add_key(api_keys_file, "anyone")
    half = framed(b"a", announced=15 << 20)
    async with running(api_keys_file=api_keys_file, max_uploads=8) as served, AsyncExitStack() as strangers:
        clients = [await strangers.enter_async_context(raw_client(served.server.port)) for _ in range(50)]
        calls = [
            await client.call(f"/grpc.health.v1.Health/{method}", half, ends=False)
            for client in clients
            for method in ("Check", "Watch")
        ]
        await until(lambda: sum(call.is_over for call in calls) > 80)

        async with connect(served.server.port) as channel:
            await pb_grpc.AlignServiceStub(channel).EmbedText(text_request("a"), metadata=bearer(key))
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())

    assert health.status == Health.SERVING
    assert {call.status for call in calls} == {None, _DEADLINE_EXCEEDED}


async def test_many_concurrent_health_checks_are_all_answered(served: RunningServer) -> None:
    """A request that arrives along with its call is read before the limit applies."""
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(connect(served.server.port)) for _ in range(10)]
        checks = [
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            for channel in channels
            for _ in range(100)
        ]

        statuses = {answer.status for answer in await asyncio.gather(*checks)}

    assert statuses == {Health.SERVING}


async def test_nothing_is_read_of_a_call_without_its_key(tmp_path: Path) -> None:
    """It is refused once its headers arrive, however much of its body has arrived."""
    api_keys_file = tmp_path / "keys.json"
    add_key(api_keys_file, "anyone")
    async with running(api_keys_file=api_keys_file) as served, raw_client(served.server.port) as client:
        calls = [
            await client.call(f"{_SERVICE}/{method}", framed(b"a", announced=15 << 20), ends=False)
            for method in ("EmbedImage", "StreamInfer")
        ]
        await client.until(lambda: all(call.status is not None for call in calls))

    assert [call.status for call in calls] == [_UNAUTHENTICATED] * 2


async def test_shutdown_does_not_wait_for_unfinished_requests() -> None:
    """They are refused, as complete requests are."""
    async with running() as served, raw_client(served.server.port) as client:
        call = await client.call(f"{_SERVICE}/EmbedText", framed(b"a", announced=1000), ends=False)
        await until(lambda: served.sample("alignserve_uploads") == 1)

        await served.server.stop(60.0)
        await client.until(lambda: call.is_over)

    assert call.status == _UNAVAILABLE


@pytest.mark.parametrize("method", [f"{_SERVICE}/StreamInfer", _REFLECTION])
async def test_a_connection_cannot_open_every_stream(method: str) -> None:
    """It gets half of them, because each can hold a request in memory; another connection still opens one."""
    async with running(max_streams=8) as served, raw_client(served.server.port) as greedy:
        calls = [await greedy.call(method, ends=False) for _ in range(6)]
        await greedy.until(lambda: sum(call.status is not None for call in calls) == 2)

        async with connect(served.server.port) as channel:
            stream: Any = channel.stream_stream(f"{_SERVICE}/StreamInfer")()
            await stream.write(
                pb.StreamInferRequest(correlation_id="a", embed_text=text_request("a")).SerializeToString()
            )
            answer = pb.StreamInferResponse.FromString(await stream.read())

    assert {call.status for call in calls} == {None, _RESOURCE_EXHAUSTED}
    assert answer.HasField("embed_text")


# --- unread responses


async def test_unread_unary_responses_are_bounded() -> None:
    """One connection gets half of the memory for them; others are served, and all is freed in the end."""
    request = text_request("a")
    response_bytes = 3000  # 640 floats and their encoding
    limits = {"max_unread_response_bytes": 100 * response_bytes, "max_response_bytes": 100_000}
    async with running(FakeEncoder(640), **limits) as served:
        async with raw_client(served.server.port, window=0) as greedy, connect(served.server.port) as channel:
            calls = [
                await greedy.call(f"{_SERVICE}/EmbedText", framed(request.SerializeToString()))
                for _ in range(200)
            ]
            await greedy.until(lambda: sum(call.status is not None for call in calls) >= 140)
            unread = served.sample("alignserve_unread_response_bytes")
            for _ in range(20):
                await pb_grpc.AlignServiceStub(channel).EmbedText(request)

        assert {call.status for call in calls} == {None, _RESOURCE_EXHAUSTED}
        assert unread <= 50 * response_bytes
        assert served.sample("alignserve_rejected_total", reason="RESPONSES_UNREAD") >= 140
        await until(lambda: served.sample("alignserve_unread_response_bytes") == 0)


async def test_unread_stream_responses_are_bounded() -> None:
    """The streams of one connection wait until it reads; another connection's stream continues."""
    item = pb.StreamInferRequest(correlation_id="a", embed_text=text_request("a"))
    limit = 100 * 3000
    limits = {"max_unread_response_bytes": limit, "max_response_bytes": 100_000}
    async with running(FakeEncoder(640), **limits) as served:
        async with raw_client(served.server.port, window=0) as greedy, connect(served.server.port) as channel:
            for _ in range(20):
                items = [
                    pb.StreamInferRequest(correlation_id=str(number), embed_text=text_request("a"))
                    for number in range(32)
                ]
                body = b"".join(framed(each.SerializeToString()) for each in items)
                await greedy.call(f"{_SERVICE}/StreamInfer", body, ends=False)
            await until(lambda: served.sample("alignserve_unread_response_bytes") > 0.45 * limit)

            stream: Any = pb_grpc.AlignServiceStub(channel).StreamInfer()
            for _ in range(20):
                await stream.write(item)
                assert (await stream.read()).HasField("embed_text")
            unread = served.sample("alignserve_unread_response_bytes")

        assert unread <= 0.6 * limit  # including those of the other stream
        await until(lambda: served.sample("alignserve_unread_response_bytes") == 0)


async def test_shutdown_completes_despite_unread_responses() -> None:
    """It takes at most its own grace period; that of connections would be minutes."""
    async with running(FakeEncoder(640)) as served:
        async with raw_client(served.server.port, window=0) as client:
            await client.call(f"{_SERVICE}/EmbedText", framed(text_request("a").SerializeToString()))
            await until(lambda: served.sample("alignserve_unread_response_bytes") > 0)

            await asyncio.wait_for(served.server.stop(0.2), 20)

        assert served.sample("alignserve_unread_response_bytes") == 0
