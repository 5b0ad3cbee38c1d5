"""Calls are accepted and ended alike, whether by gRPC's own loop or by a task of each method."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from typing import Any

import grpc
import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.rpc import aio_server
from grpc._cython import cygrpc

from tests.hostile.raw import framed, raw_client
from tests.integration.serving import RunningServer, running, text_request, until

pytestmark = pytest.mark.whole

_EMBED = "/alignserve.v1.AlignService/EmbedText"
_STREAM = "/alignserve.v1.AlignService/StreamInfer"
_TEXT = framed(text_request("a").SerializeToString())


@pytest.fixture(params=["tasks", "gRPC's loop"])
def accepting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What accepts calls: our tasks, or the loop of gRPC."""
    if request.param != "tasks":
        monkeypatch.setattr(aio_server, "_can_start_calls", lambda: False)
    return str(request.param)


def test_the_installed_grpc_lets_tasks_accept_calls() -> None:
    """Otherwise the tests below would compare gRPC's loop with itself."""
    assert aio_server._REGISTERS_METHODS
    assert aio_server._can_start_calls()


@pytest.mark.parametrize(
    ("method", "body", "metadata", "status"),
    [
        (_EMBED, _TEXT, {}, grpc.StatusCode.OK),
        (_EMBED, _TEXT, {"x-odd": "caf\xe9"}, grpc.StatusCode.OK),
        (_EMBED, _TEXT, {"x-odd-bin": "no base64!"}, grpc.StatusCode.INTERNAL),  # from gRPC itself
        (_EMBED, b"", {}, grpc.StatusCode.INVALID_ARGUMENT),
        (_EMBED, _TEXT + _TEXT, {}, grpc.StatusCode.INVALID_ARGUMENT),
        (_STREAM, b"", {}, grpc.StatusCode.OK),
        (_STREAM, framed(b"\xff"), {}, grpc.StatusCode.INVALID_ARGUMENT),
        ("/alignserve.v1.AlignService/Nothing", _TEXT, {}, grpc.StatusCode.UNIMPLEMENTED),
        (b"/\xff\xfe/\xff", _TEXT, {}, grpc.StatusCode.UNIMPLEMENTED),
    ],
)
async def test_odd_calls_end_alike(
    accepting: str, method: Any, body: bytes, metadata: dict[str, str], status: grpc.StatusCode
) -> None:
    """And the next call is answered."""
    async with running() as served, raw_client(served.server.port) as client:
        call = await client.call(method, body, metadata=metadata)
        await client.until(lambda: call.is_over)
        assert call.status == status.value[0]

        assert (await served.stub.EmbedText(text_request("a"))).embeddings


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_bug_in_a_handler_leaks_nothing(accepting: str, kind: str, caplog: Any) -> None:
    class Broken(FakeEncoder):
        is_warm = False

        def tokenize(self, *arguments: Any, **named: Any) -> Any:
            if self.is_warm:
                raise ZeroDivisionError("a secret")
            return super().tokenize(*arguments, **named)

    encoder = Broken()
    async with running(encoder) as served:
        encoder.is_warm = True
        if kind == "unary":
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await served.stub.EmbedText(text_request("a"))
            assert failed.value.code() == grpc.StatusCode.INTERNAL
            assert "secret" not in str(failed.value)
        else:
            item = pb.StreamInferRequest(correlation_id="1", embed_text=text_request("a"))
            answers = [answer async for answer in served.stub.StreamInfer(iter([item]))]
            assert answers[0].HasField("error")
            assert "secret" not in str(answers)
    assert not [record for record in caplog.records if record.name.startswith("grpc")]


@pytest.mark.parametrize("timeout", [None, 0.05])
async def test_a_client_that_goes_or_a_deadline_ends_the_handler(
    accepting: str, timeout: float | None
) -> None:
    async with running() as served:
        served.encoder.gate.clear()
        calls = [served.stub.EmbedText(text_request(f"text {i}"), timeout=timeout) for i in range(20)]
        outcomes = asyncio.gather(*calls, return_exceptions=True)
        if timeout is None:
            await until(lambda: served.items("text")["in_flight"] == 20)
            for call in calls:
                call.cancel()
        await outcomes
        await served.server.accounting.in_progress.wait_for_end()
        served.encoder.gate.set()
        await until(lambda: served.items("text")["in_flight"] == 0)
        assert served.items("text")["ok"] == 0


async def test_a_stop_under_load_ends_every_call_and_leaves_nothing(accepting: str) -> None:
    """Calls of every kind are in progress, are just arriving, or arrive while gRPC stops."""

    async def call_on(served: RunningServer) -> None:
        with suppress(grpc.aio.AioRpcError):
            while True:
                await served.stub.EmbedText(text_request("a"))

    async def stream_on(served: RunningServer) -> None:
        stream = served.stub.StreamInfer()
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                item = pb.StreamInferRequest(correlation_id="1", embed_text=text_request("a"))
                await stream.write(item)
                await stream.read()
        stream.cancel()

    async def stop_under_load() -> None:
        async with running() as served:
            await served.stub.EmbedText(text_request("connect"))
            calls = [asyncio.ensure_future(call(served)) for call in (call_on, stream_on) for _ in range(20)]
            await until(lambda: served.items("text")["ok"] > 200)
            await served.server._grpc.stop(None)
            await asyncio.gather(*calls)
            await served.server.accounting.in_progress.wait_for_end()

    before = len(asyncio.all_tasks())
    await stop_under_load()
    await until(lambda: len(asyncio.all_tasks()) <= before)
    gc.collect()
    assert not [found for found in gc.get_objects() if isinstance(found, cygrpc.AioServer)]


async def test_a_method_accepts_calls_after_grpc_failed_to_accept_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failing(cygrpc.AioServer):
        failures = 3

        async def _request_registered_call(self, method: bytes) -> Any:
            if method.decode() == _EMBED and self.failures:
                self.failures -= 1
                raise cygrpc._RequestCallError("accepting failed")
            return await super()._request_registered_call(method)

    class Server(aio_server._AcceptingServer, Failing):
        pass

    monkeypatch.setattr(aio_server, "_AcceptingServer", Server)
    async with running() as served:
        assert (await served.stub.EmbedText(text_request("a"))).embeddings
