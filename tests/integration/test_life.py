"""Start, readiness, stall and shutdown, as orchestrators and callers see them."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.server import Server, StartupError
from alignserve_server.settings import Settings
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.integration.serving import (
    RunningServer,
    image_request,
    refusal_of,
    refused,
    running,
    settings,
    text_request,
    until,
)

SERVICE = "alignserve.v1.AlignService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(channel: grpc.aio.Channel, service: str = SERVICE) -> int:
    """Asks grpc.health.v1 once."""
    stub = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def test_calls_get_model_loading_until_the_model_has_answered_once() -> None:
    """Health turns SERVING only after a forward of each modality."""
    encoder, may_load = FakeEncoder(), threading.Event()

    def load(_: Settings) -> FakeEncoder:
        may_load.wait()
        return encoder

    server = Server(settings(), load)
    await server.start()
    loading = asyncio.ensure_future(server.load())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = pb_grpc.AlignServiceStub(channel)

        before = await health(channel), await health(channel, "")
        error = await refused(stub.EmbedText(text_request("early")))
        may_load.set()
        await loading
        after = await health(channel), await health(channel, "")
        warmed = {batch.modality for batch in encoder.batches}

        assert before == (NOT_SERVING, NOT_SERVING)
        assert after == (SERVING, SERVING)
        assert warmed == {"image", "text"}
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_LOADING")
        assert error.retry_delay_seconds is not None
    await server.stop(0.0)


async def test_a_stalled_model_turns_health_red_and_back_when_it_moves_again() -> None:
    """Readiness is tied to progress: a batch that hangs is seen, and so is its end."""
    async with running(stall_timeout_seconds=0.01, watchdog_interval_seconds=0.01) as served:
        served.encoder.gate.clear()
        stuck = asyncio.ensure_future(served.stub.EmbedText(text_request("stuck")))
        watch = health_pb2_grpc.HealthStub(served.channel).Watch(
            health_pb2.HealthCheckRequest(service=SERVICE)
        )

        seen = [(await watch.read()).status]
        seen.append((await watch.read()).status)
        error = await refused(served.stub.EmbedText(text_request("refused")))
        served.encoder.gate.set()
        await stuck
        seen.append((await watch.read()).status)
        watch.cancel()

        assert seen == [SERVING, NOT_SERVING, SERVING]
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_STALLED")


async def test_a_taken_port_is_a_clear_error() -> None:
    """A second server does not start silently beside the first."""
    async with running() as served:
        second = Server(settings(listen=f"127.0.0.1:{served.server.port}"), lambda _: FakeEncoder())

        with pytest.raises(StartupError, match="--listen"):
            await second.start()

        await second.stop(0.0)


async def test_a_draining_server_answers_what_it_accepted() -> None:
    """After the drain every started call has been answered OK, and the accounts agree."""
    encoder = FakeEncoder(seconds_per_batch=0.002)
    async with running(encoder) as served:
        ok, failed = 0, []

        async def caller(number: int) -> None:
            nonlocal ok
            for i in range(10_000):
                try:
                    await served.stub.EmbedText(text_request(f"{number} {i}"))
                    ok += 1
                except grpc.aio.AioRpcError as error:
                    failed.append(refusal_of(error))
                    return

        callers = [asyncio.ensure_future(caller(number)) for number in range(64)]
        await until(lambda: ok > 200)

        await served.server.drain(0.05)
        await served.server.stop(5.0)
        await asyncio.gather(*callers)

        labels = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": "EmbedText"}
        assert served.sample("grpc_server_handled_total", grpc_code="OK", **labels) == ok
        assert served.sample("grpc_server_started_total", **labels) == ok + len(failed)
        assert served.items("text") == {
            "accepted": ok, "in_flight": 0, "ok": ok, "failed": 0, "cancelled": 0, "expired": 0,
        }  # fmt: skip
        assert {error.code for error in failed} == {grpc.StatusCode.UNAVAILABLE}
        assert {error.reason for error in failed} == {"SHUTTING_DOWN"}


async def test_a_draining_server_answers_what_streams_have_sent_and_ends_them() -> None:
    """A stream gets the answers of all items that were read, then UNAVAILABLE, so that it reconnects."""
    async with running() as served:
        served.encoder.gate.clear()
        call = served.stub.StreamInfer()
        for i in range(10):
            await call.write(pb.StreamInferRequest(correlation_id=str(i), embed_text=text_request(f"t {i}")))
        await until(lambda: served.items("text")["accepted"] == 10)

        stopping = asyncio.ensure_future(served.server.stop(5.0))
        served.encoder.gate.set()
        ids = {(await call.read()).correlation_id for _ in range(10)}
        error = await refused(call.read())
        await stopping

        assert ids == {str(i) for i in range(10)}
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


@pytest.fixture
async def process() -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A server process with the fake encoder, and its port."""
    command = Path(sys.executable).parent / "alignserve-server"
    process = await asyncio.create_subprocess_exec(
        str(command),
        *("--checkpoint", "fake", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"),
        *("--drain-delay-seconds", "0.3", "--log-format", "json"),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    port = 0
    while True:
        event = json.loads(await process.stderr.readline())
        port = event.get("port", port)
        if event["event"] == "ready":
            break
    yield process, port
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def test_sigterm_under_load_loses_no_accepted_call(
    process: tuple[asyncio.subprocess.Process, int],
) -> None:
    """Every call that was under way at SIGTERM succeeds, and the process exits with 0."""
    server, port = process
    signalled_at = float("inf")
    lost: list[tuple[float, grpc.StatusCode]] = []
    answered = 0
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = pb_grpc.AlignServiceStub(channel)

        async def caller(number: int) -> None:
            nonlocal answered
            while True:
                sent_at = time.monotonic()
                try:
                    await stub.EmbedImage(image_request(f"image {number}".encode() * 1000))
                    answered += 1
                except grpc.aio.AioRpcError as error:
                    lost.append((sent_at, error.code()))
                    return

        callers = [asyncio.ensure_future(caller(number)) for number in range(32)]
        await until(lambda: answered > 300)

        signalled_at = time.monotonic()
        server.send_signal(signal.SIGTERM)
        await asyncio.gather(*callers)
        code = await server.wait()

    assert code == 0
    assert answered > 300
    assert {code for _, code in lost} == {grpc.StatusCode.UNAVAILABLE}
    assert min(sent_at for sent_at, _ in lost) > signalled_at


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_server_exits_cleanly(
    process: tuple[asyncio.subprocess.Process, int], number: signal.Signals
) -> None:
    """SIGTERM and Ctrl-C end with 0."""
    server, _ = process

    server.send_signal(number)

    assert await server.wait() == 0


async def test_a_bad_checkpoint_ends_the_process_with_a_reason() -> None:
    """A server that cannot load its model exits with 1, says why in one line, and prints no traceback."""
    command = Path(sys.executable).parent / "alignserve-server"
    process = await asyncio.create_subprocess_exec(
        str(command),
        *("--checkpoint", "/nowhere/at/all", "--listen", "127.0.0.1:0", "--no-metrics"),
        stderr=asyncio.subprocess.PIPE,
    )

    _, stderr = await process.communicate()

    assert process.returncode == 1
    assert b"/nowhere/at/all" in stderr
    assert b"Traceback" not in stderr


async def test_metrics_page_answers_over_http(served: RunningServer) -> None:
    """Prometheus can scrape the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.server.metrics_port)
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")

    page = await reader.read()
    writer.close()
    await writer.wait_closed()

    assert b"200 OK" in page
    assert b"alignserve_model_info{" in page
