"""Several fronts of one device: they share its batches, its room and its caches, and outlive it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from alignserve_server.access.keys import Scope, changed_keys, new_key
from alignserve_server.access.shared_usage import SharedUsages, new_memory
from alignserve_server.model.fake import FakeBatch, FakeEncoder
from alignserve_server.serving.device_process import Device
from alignserve_server.serving.front_server import FrontServer

from tests.integration.serving import (
    front,
    image_request,
    refused,
    running_device,
    text_request,
    until,
)


@dataclass
class Front:
    """A front that is ready, and a client of it."""

    server: FrontServer
    stub: pb_grpc.AlignServiceAsyncStub

    def embed(self, *texts: str, **call: Any) -> asyncio.Future[pb.EmbedTextResponse]:
        """Starts to embed texts."""
        return asyncio.ensure_future(self.stub.EmbedText(text_request(*texts), **call))

    def sample(self, name: str, **labels: str) -> float:
        """Returns one value of the front's own page."""
        return self.server.metrics.registry.get_sample_value(name, labels) or 0.0


@dataclass
class Pair:
    """Two fronts of one device."""

    device: Device
    encoder: FakeEncoder
    one: Front
    other: Front

    def sample(self, name: str, **labels: str) -> float:
        """Returns one value of the device's page."""
        return self.device.metrics.registry.get_sample_value(name, labels) or 0.0

    async def plug(self) -> asyncio.Future[pb.EmbedTextResponse]:
        """Keeps the lane busy until the encoder's gate is set."""
        self.encoder.gate.clear()
        plug = self.one.embed("plug")
        await until(lambda: self.encoder.batches)
        self.encoder.batches.clear()
        return plug

    async def waiting(self, items: int) -> None:
        """Returns when that many texts wait for a batch."""
        await until(lambda: self.sample("alignserve_queue_entries", modality="text") == items)


@asynccontextmanager
async def ready_front(
    encoder: FakeEncoder, path: str, usages: SharedUsages | None = None, **overrides: Any
) -> AsyncIterator[Front]:
    """Runs a front in this process for the length of the block."""
    server = front(encoder, path, usages, **overrides)
    await server.start()
    await server.load()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Front(server, pb_grpc.AlignServiceStub(channel))
        encoder.gate.set()
        await server.drain(0.0)
        await server.stop(5.0)


@asynccontextmanager
async def two_fronts(**overrides: Any) -> AsyncIterator[Pair]:
    """Runs a device and two fronts in this process for the length of the block."""
    encoder = FakeEncoder()
    async with AsyncExitStack() as life:
        device, path = await life.enter_async_context(running_device(encoder, **overrides))
        one, other = [
            await life.enter_async_context(ready_front(encoder, path, **overrides)) for _ in range(2)
        ]
        encoder.batches.clear()
        yield Pair(device, encoder, one, other)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Two fronts with default settings."""
    async with two_fronts() as pair:
        yield pair


def keys(encoder: FakeEncoder, *texts: str) -> set[bytes]:
    return {encoder.key(text) for text in texts}


async def test_callers_of_different_fronts_share_a_batch(pair: Pair) -> None:
    """Each gets its own embedding."""
    plug = await pair.plug()
    calls = [pair.one.embed("a cat"), pair.other.embed("a dog")]
    await pair.waiting(2)

    pair.encoder.gate.set()
    answers = await asyncio.gather(plug, *calls)

    (batch,) = pair.encoder.batches
    assert set(batch.keys) == keys(pair.encoder, "a cat", "a dog")
    for answer, text in zip(answers, ["plug", "a cat", "a dog"], strict=True):
        found = np.frombuffer(answer.embeddings[0].packed_float32, "<f4")
        np.testing.assert_allclose(found, pair.encoder.embedding_of(text), atol=1e-6)


async def test_equal_texts_of_different_fronts_run_once(pair: Pair) -> None:
    """While one runs the others join it; afterwards it is in the device's cache."""
    plug = await pair.plug()
    calls = [pair.one.embed("the same"), pair.other.embed("the same")]
    await until(lambda: pair.sample("alignserve_embedding_cache_coalesced_total", modality="text") == 1)

    pair.encoder.gate.set()
    await asyncio.gather(plug, *calls)
    await pair.other.embed("the same")

    assert pair.encoder.batches == [FakeBatch("text", (pair.encoder.key("the same"),))]
    assert pair.sample("alignserve_embedding_cache_hits_total", modality="text") == 1


async def test_a_cached_image_of_another_front_is_not_decoded() -> None:
    """Fronts ask the device for images by their content."""
    async with two_fronts(image_cache_bytes=1 << 20) as pair:
        await pair.one.stub.EmbedImage(image_request(b"a photo"))

        await pair.other.stub.EmbedImage(image_request(b"a photo"))

        assert len(pair.encoder.batches) == 1
        assert pair.sample("alignserve_embedding_cache_hits_total", modality="image") == 1


async def test_the_room_is_that_of_all_fronts() -> None:
    """A call is refused because of items that wait on behalf of another front."""
    async with two_fronts(max_queue_size=8, max_client_batch_size=8) as pair:
        plug = await pair.plug()
        waiting = pair.one.embed(*(f"text {number}" for number in range(6)))
        await pair.waiting(6)

        error = await refused(pair.other.stub.EmbedText(text_request("one", "too", "many")))

        pair.encoder.gate.set()
        await asyncio.gather(plug, waiting)
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert pair.other.sample("alignserve_rejected_total", reason="QUEUE_FULL") == 1


async def test_turns_are_those_of_all_fronts(tmp_path: Path) -> None:
    """A caller who sends one text is not behind the backlog of a caller of another front."""
    path = tmp_path / "keys.json"
    with changed_keys(path) as file:
        secrets = {}
        for name in ("flood", "single"):
            secrets[name], file[name] = new_key(name, frozenset({Scope.EMBED}))
    flood, single = ({"metadata": [("authorization", f"Bearer {secrets[name]}")]} for name in secrets)
    async with two_fronts(api_keys_file=path, max_text_batch_size=4) as pair:
        pair.encoder.gate.clear()
        plug = pair.one.embed("plug", **flood)
        await until(lambda: pair.encoder.batches)
        pair.encoder.batches.clear()
        backlog = pair.one.embed(*(f"flood {number}" for number in range(32)), **flood)
        await pair.waiting(32)
        call = pair.other.embed("single", **single)
        await pair.waiting(33)
        shown = [pair.sample("alignserve_caller_waiting_items", caller=name) for name in ("flood", "single")]

        pair.encoder.gate.set()
        await asyncio.gather(plug, backlog, call)

        assert pair.encoder.key("single") in pair.encoder.batches[0].keys + pair.encoder.batches[1].keys
        assert shown == [32, 1]


async def test_quotas_are_those_of_all_fronts(tmp_path: Path) -> None:
    """A call in progress at one front counts at the other."""
    path = tmp_path / "keys.json"
    with changed_keys(path) as file:
        secret, file["one"] = new_key("one", frozenset({Scope.EMBED}), max_concurrent_requests=1)
    call = {"metadata": [("authorization", f"Bearer {secret}")]}
    encoder, usages = FakeEncoder(), new_memory(2)
    async with AsyncExitStack() as life:
        _, device = await life.enter_async_context(running_device(encoder))
        one, other = [
            await life.enter_async_context(
                ready_front(encoder, device, SharedUsages(usages, number, 2), api_keys_file=path)
            )
            for number in range(2)
        ]
        encoder.gate.clear()
        encoder.batches.clear()
        running = one.embed("running", **call)
        await until(lambda: encoder.batches)

        error = await refused(other.embed("too many", **call))
        encoder.gate.set()
        await running
        answer = await other.embed("the next", **call)

    assert error.reason == "QUOTA_EXCEEDED"
    assert len(answer.embeddings) == 1


async def test_a_front_that_leaves_frees_its_room(pair: Pair) -> None:
    """Its waiting items never reach the device, and those of the other front do."""
    plug = await pair.plug()
    left, stays = pair.other.embed("left"), pair.one.embed("stays")
    await pair.waiting(2)

    await pair.other.server._link.close()
    await pair.waiting(1)
    pair.encoder.gate.set()
    await asyncio.gather(plug, stays)

    assert (await refused(left)).code is grpc.StatusCode.UNAVAILABLE
    assert pair.encoder.batches == [FakeBatch("text", (pair.encoder.key("stays"),))]


async def test_a_front_outlives_its_device() -> None:
    """What waited is UNAVAILABLE, which clients repeat; the next device is used without a restart."""
    encoder = FakeEncoder()
    async with running_device(encoder) as (device, path), ready_front(encoder, path) as one:
        encoder.gate.clear()
        waiting = one.embed("waiting")
        await until(lambda: encoder.batches)

        stopping = asyncio.ensure_future(device.stop(0.0))
        lost = await refused(waiting)
        await until(lambda: one.server.state == "loading")
        early = await refused(one.embed("early"))
        encoder.gate.set()
        await stopping

        async with running_device(encoder, path):
            await until(lambda: one.server.state == "serving")
            answer = await one.embed("served")

        assert {lost.code, early.code} == {grpc.StatusCode.UNAVAILABLE}
        assert {lost.reason, early.reason} == {"MODEL_LOADING"}
        assert lost.retry_delay_seconds
        assert len(answer.embeddings) == 1


async def test_a_front_frees_the_memory_that_it_shared_with_a_device_that_has_ended() -> None:
    """It makes new memory for each device; both ends are in this process."""
    encoder = FakeEncoder()
    async with running_device(encoder) as (device, path), ready_front(encoder, path) as one:
        await one.embed("a text")
        before = _mapped_memories()
        await device.stop(0.0)
        del device

        async with running_device(encoder, path):
            await until(lambda: one.server.state == "serving")
            await one.embed("another text")

            await until(lambda: _mapped_memories() <= before)


def _mapped_memories() -> int:
    gc.collect()
    return Path("/proc/self/maps").read_text().count("memfd:alignserve-front")


async def test_a_front_ends_if_the_next_device_has_another_model() -> None:
    """It prepares inputs for the first one, so only a new front can serve the other."""
    encoder = FakeEncoder()
    async with running_device(encoder) as (device, path), ready_front(encoder, path) as one:
        await device.stop(0.0)

        async with running_device(FakeEncoder(16), path):
            await one.server.wait_until_unrecoverable()


async def test_a_front_is_stalled_while_its_device_is() -> None:
    """Its waiting calls are answered, and it recovers with the device."""
    async with two_fronts(stall_timeout_seconds=0.1) as pair:
        plug = await pair.plug()
        await until(lambda: pair.other.server.state == "stalled")
        errors = [await refused(plug), await refused(pair.other.embed("refused"))]

        pair.encoder.gate.set()
        await until(lambda: pair.other.server.state == "serving")

        assert {error.reason for error in errors} == {"MODEL_STALLED"}


async def test_each_series_is_in_one_kind_of_process(pair: Pair) -> None:
    """Calls are counted by fronts and batches by the device; only facts of a process are in both."""
    await pair.one.embed("a text")

    def series(metrics: Any) -> set[str]:
        return {family.name for family in metrics.registry.collect() if family.samples}

    shared = series(pair.device.metrics) & series(pair.one.server.metrics)
    own = {name for name in shared if not name.startswith(("process_", "python_"))}
    assert own <= {
        "alignserve_event_loop_lag_seconds",
        "alignserve_event_loop_tasks",
        "alignserve_log_lines_dropped",
    }
    assert pair.one.sample("alignserve_items_total", modality="text", outcome="ok") == 1
    assert pair.sample("alignserve_batch_size_count", modality="text") == 1
