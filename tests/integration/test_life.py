"""Startup, readiness, stalls and shutdown, as orchestrators and callers see them."""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from alignserve_server.errors import StartupError
from alignserve_server.model.encoder import ImageInput, PixelValues
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.serving.server import Server
from alignserve_server.settings import Settings
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.integration.serving import (
    RunningServer,
    ServerProcess,
    connect,
    image_request,
    refusal_of,
    refused,
    running,
    server_process,
    settings,
    text_request,
    until,
)

SERVICE = "alignserve.v1.AlignService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
WATCHFUL: dict[str, Any] = {"stall_timeout_seconds": 0.1}


async def health(channel: grpc.aio.Channel, service: str = SERVICE) -> int:
    """Calls grpc.health.v1 once."""
    stub = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


def watch_health(served: RunningServer) -> Any:
    """Opens a health watch."""
    stub = health_pb2_grpc.HealthStub(served.channel)
    return stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))


async def test_calls_get_model_loading_until_the_model_is_warm() -> None:
    """Health becomes SERVING only after one forward per modality."""
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


@pytest.mark.shapes
async def test_health_is_not_serving_while_the_model_is_stalled() -> None:
    """Readiness follows progress: it notices a batch that hangs, and the end of the hang."""
    async with running(**WATCHFUL) as served:
        watch = watch_health(served)
        seen = [(await watch.read()).status]

        served.encoder.gate.clear()
        stuck = asyncio.ensure_future(served.stub.EmbedText(text_request("stuck")))
        seen.append((await watch.read()).status)
        errors = [await refused(stuck), await refused(served.stub.EmbedText(text_request("refused")))]
        served.encoder.gate.set()
        seen.append((await watch.read()).status)
        watch.cancel()

        assert seen == [SERVING, NOT_SERVING, SERVING]
        answers = {(error.code, error.reason) for error in errors}
        assert answers == {(grpc.StatusCode.UNAVAILABLE, "MODEL_STALLED")}
        await until(lambda: is_answered(served))  # on a busy machine the call may stall again


async def is_answered(served: RunningServer) -> bool:
    try:
        await served.stub.EmbedText(text_request("after"))
    except grpc.aio.AioRpcError:
        return False
    return True


class SlowDecoder(FakeEncoder):
    """A model whose images are decoded once `may_decode` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.may_decode = threading.Event()

    def preprocess_image(self, image: ImageInput) -> PixelValues:
        if image == b"slow":
            self.may_decode.wait()
        return super().preprocess_image(image)


async def test_health_is_not_serving_while_decoding_is_stuck() -> None:
    """When every decoding thread is stuck, no image is served."""
    encoder = SlowDecoder()
    async with running(encoder, decode_threads=1, **WATCHFUL) as served:
        watch = watch_health(served)
        seen = [(await watch.read()).status]

        stuck = asyncio.ensure_future(served.stub.EmbedImage(image_request(b"slow")))
        seen.append((await watch.read()).status)
        encoder.may_decode.set()
        await asyncio.wait([stuck])
        seen.append((await watch.read()).status)
        watch.cancel()

        assert seen == [SERVING, NOT_SERVING, SERVING]


async def test_an_image_decoded_after_the_stall_began_is_answered_too() -> None:
    """It was accepted earlier and reaches the queue after all waiting items were answered."""
    encoder = SlowDecoder()
    async with running(encoder, decode_threads=2, **WATCHFUL) as served:
        late = asyncio.ensure_future(served.stub.EmbedImage(image_request(b"slow")))
        await until(lambda: served.items("image")["in_flight"] == 1)
        encoder.gate.clear()
        await refused(served.stub.EmbedText(text_request("stuck")))

        encoder.may_decode.set()
        error = await refused(late)

        assert error.reason == "MODEL_STALLED"


async def test_health_is_not_serving_while_every_forward_fails() -> None:
    """After repeated failures the watchdog probes the model, and readiness follows the result."""
    async with running(stall_timeout_seconds=1.0) as served:
        served.encoder.max_batch_size = 0
        watch = watch_health(served)
        seen = [(await watch.read()).status]

        for i in range(8):
            await refused(served.stub.EmbedText(text_request(f"t {i}")))
        seen.append((await watch.read()).status)
        served.encoder.max_batch_size = None
        seen.append((await watch.read()).status)
        watch.cancel()

        assert seen == [SERVING, NOT_SERVING, SERVING]


@pytest.mark.long
@pytest.mark.shapes
async def test_failing_inputs_on_a_working_device_are_not_a_stall() -> None:
    """However many of them one caller sends, the model works for all others."""
    async with running(stall_timeout_seconds=60.0) as served:  # which even a busy machine does not reach
        served.encoder.failing = {served.encoder.key("poison")}
        for _ in range(20):
            await refused(served.stub.EmbedText(text_request("poison")))
        await until(lambda: any(batch.modality == "image" for batch in served.encoder.batches))  # the probe

        response = await served.stub.EmbedText(text_request("fine"))

        assert len(response.embeddings) == 1


@pytest.mark.timeout(30)
async def test_clients_that_only_watch_do_not_hold_up_a_stop(served: RunningServer) -> None:
    """The grace period is for calls of the API: a health watch or reflection stream would use all of it."""
    watch = watch_health(served)
    reflection = reflection_pb2_grpc.ServerReflectionStub(served.channel).ServerReflectionInfo()
    await reflection.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    await reflection.read()
    seen = [(await watch.read()).status]

    await served.server.stop(600.0)
    seen.append((await watch.read()).status)
    ends = [await refused(watch.read()), await refused(reflection.read())]

    assert seen == [SERVING, NOT_SERVING]
    assert [end.reason for end in ends] == ["SHUTTING_DOWN"] * 2


async def test_a_watch_that_starts_during_a_stop_is_told_why_it_ends(served: RunningServer) -> None:
    """The stop comes while the first status is being sent."""
    served.server.interceptor.close_watches()

    ends = [await _end_of(watch_health(served)) for _ in range(20)]

    assert [end.reason for end in ends] == ["SHUTTING_DOWN"] * 20


async def _end_of(watch: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in watch:
            pass
    return refusal_of(caught.value)


async def test_an_accepted_call_is_answered_despite_an_open_watch(served: RunningServer) -> None:
    """The server ignores open watches when it stops, but still waits for accepted calls."""
    watch = watch_health(served)
    await watch.read()
    served.encoder.gate.clear()
    call = asyncio.ensure_future(served.stub.EmbedText(text_request("accepted")))
    await until(lambda: served.items("text")["accepted"] == 1)

    stopping = asyncio.ensure_future(served.server.stop(60.0))
    refused_status = (await watch.read()).status
    served.encoder.gate.set()
    response = await call
    await stopping

    assert refused_status == NOT_SERVING
    assert len(response.embeddings) == 1


async def test_a_taken_port_is_a_clear_error() -> None:
    """A second server does not silently start on the first one's port."""
    async with running() as served:
        second = Server(settings(listen=f"127.0.0.1:{served.server.port}"), lambda _: FakeEncoder())

        with pytest.raises(StartupError, match="--listen"):
            await second.start()

        await second.stop(0.0)


@pytest.mark.shapes
async def test_a_draining_server_answers_what_it_accepted() -> None:
    """After the drain every started call has been answered OK, and the item counts agree."""
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
    """A stream gets the answers to all items that were read, then UNAVAILABLE, so that it reconnects."""
    async with running() as served:
        served.encoder.gate.clear()
        call: Any = served.stub.StreamInfer()
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


@pytest.mark.shapes
async def test_streams_under_load_end_without_a_failed_item(served: RunningServer) -> None:
    """Once calls are refused, streams stop reading; items already read are answered, not refused."""
    failed: list[str] = []
    answered = 0

    async def write(call: grpc.aio.StreamStreamCall) -> None:
        for i in itertools.count():
            await call.write(pb.StreamInferRequest(correlation_id=str(i), embed_text=text_request(f"t {i}")))

    async def stream() -> None:
        nonlocal answered
        call: Any = served.stub.StreamInfer()
        writing = asyncio.ensure_future(write(call))
        with suppress(grpc.aio.AioRpcError):
            while True:
                response = await call.read()
                answered += 1
                if response.HasField("error"):
                    failed.append(response.error.message)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)

    streams = [asyncio.ensure_future(stream()) for _ in range(4)]
    await until(lambda: answered > 100)

    await served.server.drain(0.0)
    await asyncio.gather(*streams)

    assert failed == []


@pytest.fixture(
    params=[
        pytest.param("--workers=1", id="alone"),
        pytest.param("--workers=2", id="workers", marks=pytest.mark.long),
        pytest.param("--front-processes=2", id="fronts"),
    ]
)
async def process(request: pytest.FixtureRequest) -> AsyncIterator[ServerProcess]:
    """A ready server with the fake encoder: one process, two workers, or a device process and two fronts."""
    async with server_process("--drain-delay-seconds", "0.3", request.param) as server:
        events = await server.events("ready")
        server.port = next(event["port"] for event in events if event["event"] == "listening")
        yield server


async def test_sigterm_under_load_loses_no_accepted_call(process: ServerProcess) -> None:
    """Every call in progress at SIGTERM succeeds, and the process exits with 0."""
    signalled_at = float("inf")
    lost: list[tuple[float, grpc.StatusCode]] = []
    answered = 0
    async with AsyncExitStack() as channels:
        stubs = [
            pb_grpc.AlignServiceStub(await channels.enter_async_context(connect(process.port)))
            for _ in range(8)
        ]

        async def caller(number: int) -> None:
            nonlocal answered
            while True:
                sent_at = time.monotonic()
                try:
                    await stubs[number % 8].EmbedImage(image_request(f"image {number}".encode() * 1000))
                    answered += 1
                except grpc.aio.AioRpcError as error:
                    lost.append((sent_at, error.code()))
                    return

        callers = [asyncio.ensure_future(caller(number)) for number in range(32)]
        await until(lambda: answered > 300)

        signalled_at = time.monotonic()
        process.process.send_signal(signal.SIGTERM)
        await asyncio.gather(*callers)
        code = await process.wait()

    assert code == 0
    assert answered > 300
    assert {code for _, code in lost} == {grpc.StatusCode.UNAVAILABLE}
    assert min(sent_at for sent_at, _ in lost) > signalled_at


@pytest.mark.parametrize(
    "process",
    [
        "--workers=1",
        *(pytest.param(flag, marks=pytest.mark.long) for flag in ("--workers=2", "--front-processes=2")),
    ],
    indirect=True,
)
async def test_an_idle_server_exits_cleanly(process: ServerProcess) -> None:
    """Ctrl-C gives exit code 0, as SIGTERM does."""
    code = await process.stop(signal.SIGINT)

    assert code == 0


@pytest.mark.timeout(30)
async def test_sigterm_while_loading_ends_the_process() -> None:
    """The process waits neither for the load, which cannot be interrupted, nor for the drain delay."""
    never_loads = "def __init__(self): get_stuck()"
    async with server_process("--drain-delay-seconds", "600", encoder=never_loads) as server:
        await server.event("stuck")

        code = await server.stop()

        assert code == 0


@pytest.mark.timeout(30)
async def test_a_decode_that_never_ends_does_not_delay_the_exit() -> None:
    """After a clean stop the process exits, whatever its threads are doing."""
    never_decodes = "preprocess_image = lambda self, content: get_stuck()"
    flags = ("--drain-delay-seconds", "0", "--shutdown-grace-seconds", "0.1")
    async with server_process(*flags, encoder=never_decodes, warms_up=False) as server:
        await server.event("ready")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            call = pb_grpc.AlignServiceStub(channel).EmbedImage(image_request(b"image"))
            await server.event("stuck")

            code = await server.stop()

            assert code == 0
            assert await call.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.timeout(30)
async def test_a_second_signal_ends_the_grace_period() -> None:
    """After a second Ctrl-C the server does not wait for calls in progress."""
    never_encodes = "encode_texts = lambda self, batch: get_stuck()"
    flags = ("--shutdown-grace-seconds", "600")
    async with server_process(*flags, encoder=never_encodes, warms_up=False) as server:
        await server.event("ready")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            call = pb_grpc.AlignServiceStub(channel).EmbedText(text_request("a text"))
            await server.event("stuck")

            server.process.send_signal(signal.SIGINT)
            await server.event("stopping")
            code = await server.stop(signal.SIGINT)

            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            assert code == 0


@pytest.mark.parametrize(
    "flag", ["--workers=1", pytest.param("--workers=2", marks=pytest.mark.long), "--front-processes=1"]
)
async def test_a_bad_checkpoint_ends_the_process_with_a_reason(flag: str) -> None:
    """A server that cannot load its model exits with 1, says why in one line, and prints no traceback."""
    command = Path(sys.executable).parent / "alignserve-server"
    process = await asyncio.create_subprocess_exec(
        str(command),
        *("--checkpoint", "/nowhere/at/all", flag),
        *("--listen", "127.0.0.1:0", "--metrics-listen", "none"),
        stderr=asyncio.subprocess.PIPE,
    )

    _, stderr = await process.communicate()

    assert process.returncode == 1
    assert b"/nowhere/at/all" in stderr
    assert b"Traceback" not in stderr


async def test_an_unexpected_load_failure_is_one_log_line() -> None:
    """Whatever a runtime raises, the log keeps its format and the exit code is 1."""
    fails = "def __init__(self): raise NotImplementedError('no such device')"
    async with server_process(encoder=fails) as server:
        event = await server.event("startup_failed")
        code = await server.wait()

        assert event["reason"] == "NotImplementedError: no such device"
        assert event["exception"]
        assert code == 1


async def test_a_server_that_loads_first_is_ready_as_soon_as_it_listens() -> None:
    """A worker then accepts no connection that another could serve in the meantime."""
    server = Server(settings(), lambda _: FakeEncoder())

    await server.load()
    await server.start()

    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        assert await health(channel) == SERVING
    await server.stop(0.0)


@pytest.mark.whole
async def test_the_metrics_page_is_served_over_http(served: RunningServer) -> None:
    """Prometheus can scrape the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.server.metrics_port)
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")

    page = await reader.read()
    writer.close()
    await writer.wait_closed()

    assert b"200 OK" in page
    assert b"alignserve_model_info{" in page
