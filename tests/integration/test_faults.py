"""A model that fails: the errors that callers get, and the state of the server afterwards."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from alignserve_server.serving.exit_codes import EXIT_UNRECOVERABLE

from tests.integration.serving import (
    connect,
    image_request,
    refused,
    running,
    server_process,
    text_request,
    until,
)

_LOST_DEVICE = """
    def encode_texts(self, batch):
        from alignserve_server.model.encoder import DeviceLost
        raise DeviceLost("CUDA error: misaligned address")"""
_QUICK = ("--stall-timeout-seconds", "0.2", "--log-level", "info")


@pytest.mark.parametrize("fault", ["raises", "is not finite", "runs out of memory"])
async def test_a_poisonous_item_fails_without_its_neighbours(fault: str) -> None:
    """The other items of its batch get their own embeddings."""
    async with running(max_batch_size=8) as served:
        encoder = served.encoder
        if fault == "raises":
            encoder.failing = {encoder.key("poison")}
        elif fault == "is not finite":
            encoder.not_finite = {encoder.key("poison")}
        else:
            encoder.max_batch_size = 2
        encoder.gate.clear()
        plug = asyncio.ensure_future(served.stub.EmbedText(text_request("plug")))
        await until(lambda: len(encoder.batches) == 1)
        texts = ["poison", *(f"t {i}" for i in range(7))]
        calls = [asyncio.ensure_future(served.stub.EmbedText(text_request(text))) for text in texts]
        await until(lambda: served.waiting("text") == 8)
        encoder.gate.set()
        await plug
        outcomes = await asyncio.gather(*calls, return_exceptions=True)

        pairs = list(zip(texts, outcomes, strict=True))
        failed = [text for text, outcome in pairs if isinstance(outcome, Exception)]
        assert failed == ([] if fault == "runs out of memory" else ["poison"])
        for text, outcome in pairs:
            if text not in failed:
                assert not isinstance(outcome, BaseException)
                embedding = np.frombuffer(outcome.embeddings[0].packed_float32, "<f4")
                np.testing.assert_allclose(embedding, encoder.embedding_of(text), atol=1e-6)
        account = served.items("text")
        assert account["ok"] + account["failed"] == account["accepted"] == 9
        assert account["failed"] == len(failed)


async def test_a_batch_limit_learned_from_out_of_memory_is_lifted_later() -> None:
    """The memory may be free again: after a hundred full batches, larger ones are tried."""
    async with running(max_batch_size=4) as served:
        served.encoder.max_batch_size = 2
        await served.stub.EmbedText(text_request("a", "b", "c", "d"))
        served.encoder.max_batch_size = None
        served.encoder.batches.clear()
        for i in range(102):
            await served.stub.EmbedText(text_request(*(f"{i} {j}" for j in range(4))))

        sizes = [len(batch.keys) for batch in served.encoder.batches]
        assert sizes[0] == 2
        assert sizes[-1] == 4
        assert served.sample("alignserve_batch_splits_total", reason="out_of_memory") == 1


@pytest.mark.parametrize("how", ["dies", "hangs"])
async def test_an_unrecoverable_server_exits_with_its_own_code(how: str) -> None:
    """Callers get UNAVAILABLE, whether running or waiting; an orchestrator restarts the process."""
    fault = {"dies": "raise SystemExit", "hangs": "get_stuck()"}[how]
    flags = ("--lanes", "1", "--stall-exit-seconds", "0.5", *_QUICK)
    async with server_process(
        *flags, encoder=f"def encode_texts(self, batch): {fault}", warms_up=False
    ) as process:
        await process.event("ready")
        async with connect(process.port) as channel:
            stub = pb_grpc.AlignServiceStub(channel)
            calls = [asyncio.ensure_future(stub.EmbedText(text_request(f"t {i}"))) for i in range(3)]
            errors = [await refused(call) for call in calls]
        code = await process.wait()

        assert {error.code for error in errors} == {grpc.StatusCode.UNAVAILABLE}
        late = {"SHUTTING_DOWN"}  # the reason of a call that arrives after the stop has begun
        assert {error.reason for error in errors} - late == {"MODEL_STALLED"}
        assert code == EXIT_UNRECOVERABLE


@pytest.mark.long
async def test_decoding_that_never_returns_ends_the_process_too() -> None:
    """The process does not wait for the threads that it has abandoned."""
    flags = ("--decode-threads", "1", "--stall-exit-seconds", "0.5", *_QUICK)
    stuck = "def preprocess_image(self, content): get_stuck()"
    async with server_process(*flags, encoder=stuck, warms_up=False) as process:
        await process.event("ready")
        async with connect(process.port) as channel:
            error = await refused(pb_grpc.AlignServiceStub(channel).EmbedImage(image_request(b"a")))

        assert error.code is grpc.StatusCode.UNAVAILABLE
        assert await process.wait() == EXIT_UNRECOVERABLE


async def test_a_permanently_failed_device_ends_the_process() -> None:
    """A fault of a CUDA device, for example, lasts as long as its process."""
    broken = "def encode_texts(self, batch): raise RuntimeError"
    flags = ("--stall-exit-seconds", "0.5", *_QUICK)
    async with server_process(*flags, encoder=broken, warms_up=False) as process:
        await process.event("ready")
        async with connect(process.port) as channel:
            stub = pb_grpc.AlignServiceStub(channel)
            reasons = {(await refused(stub.EmbedText(text_request(f"t {i}")))).reason for i in range(8)}

        assert reasons == {"INFERENCE_FAILED"}
        assert await process.wait() == EXIT_UNRECOVERABLE


@pytest.mark.long
async def test_a_server_that_cannot_capture_graphs_starts_again_without_them() -> None:
    """The failed capture may have left the device unusable for the process, so a new one takes over."""
    encoder = """
    def encode_texts(self, batch):
        from alignserve_server.model.encoder import CaptureFailed
        if "--no-cuda-graphs" not in sys.argv:
            raise CaptureFailed("operation not permitted when stream is capturing")
        return super().encode_texts(batch)"""
    async with server_process(encoder=encoder) as process:
        disabled = await process.event("cuda_graphs_disabled")
        await process.event("ready")

        assert disabled["reason"] == "operation not permitted when stream is capturing"
        async with connect(process.port) as channel:
            await pb_grpc.AlignServiceStub(channel).EmbedText(text_request("a"))
        assert await process.stop() == 0


@pytest.mark.parametrize("warms_up", [False, True], ids=["while serving", "while loading"])
async def test_a_lost_device_ends_the_process_at_once(warms_up: bool) -> None:
    """A CUDA fault lasts as long as its process, so nothing is gained by waiting for a stall's limits."""
    async with server_process(encoder=_LOST_DEVICE, warms_up=warms_up) as process:
        if not warms_up:
            await process.event("ready")
            async with connect(process.port) as channel:
                stub = pb_grpc.AlignServiceStub(channel)
                error = await refused(stub.EmbedText(text_request("a")))
            assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_STALLED")
        lost = await process.event("device_lost")

        assert lost["reason"] == "CUDA error: misaligned address"
        assert await process.wait() == EXIT_UNRECOVERABLE


async def test_a_probe_that_finds_the_device_lost_ends_the_process() -> None:
    """Errors that may be the inputs' fault are probed; the probe shows that they are not."""
    broken = f"""
    def encode_texts(self, batch): raise RuntimeError
    {_LOST_DEVICE.replace("texts", "images")}"""
    async with server_process(*_QUICK, encoder=broken, warms_up=False) as process:
        await process.event("ready")
        async with connect(process.port) as channel:
            stub = pb_grpc.AlignServiceStub(channel)
            for number in range(8):
                await refused(stub.EmbedText(text_request(f"t {number}")))

        assert await process.event("device_lost")
        assert await process.wait() == EXIT_UNRECOVERABLE


async def test_a_stall_without_a_time_limit_ends_nothing() -> None:
    """An operator can then examine the stalled process."""
    flags = ("--stall-exit-seconds", "0", *_QUICK)
    async with server_process(
        *flags, encoder="def encode_texts(self, batch): get_stuck()", warms_up=False
    ) as process:
        await process.event("ready")
        async with connect(process.port) as channel:
            await refused(pb_grpc.AlignServiceStub(channel).EmbedText(text_request("a")))
            for _ in range(20):  # more checks of the watchdog than it would take
                await refused(pb_grpc.AlignServiceStub(channel).EmbedText(text_request("b")))
                await asyncio.sleep(0.05)

        assert process.process.returncode is None
