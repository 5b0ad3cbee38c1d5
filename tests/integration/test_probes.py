"""The metrics port over a server's lifetime: probes, the state, and which series exist when."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from alignserve_server.access.keys import changed_keys
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.observability.metrics import STATES
from alignserve_server.serving.server import CallServer, Server
from prometheus_client import Metric

from tests.integration.serving import (
    classify_request,
    connect,
    image_request,
    refused,
    running,
    server_process,
    settings,
    text_request,
    until,
)

_QUICK = {"stall_timeout_seconds": 0.1, "stall_exit_seconds": 0}


async def ask(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    """Returns the status and body of a response of the metrics port."""

    def blocking() -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", port)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    return await asyncio.to_thread(blocking)


async def seen(server: Server) -> tuple[str, tuple[int, str], tuple[int, str]]:
    """Returns the state that the gauge shows, and the responses to both probes."""
    sample = server.metrics.registry.get_sample_value
    shown = {state: sample("alignserve_state", {"state": state}) for state in STATES}
    assert sorted(value or 0 for value in shown.values()) == [0, 0, 0, 1]
    (state,) = (state for state, value in shown.items() if value)
    return state, await ask(server.metrics_port, "/readyz"), await ask(server.metrics_port, "/healthz")


@asynccontextmanager
async def loading_server(**overrides) -> AsyncIterator[tuple[Server, FakeEncoder, threading.Event]]:
    """Runs a server that loads until the event is set."""
    encoder, loaded = FakeEncoder(), threading.Event()
    server = Server(settings(**overrides), lambda _: (loaded.wait(), encoder)[1])
    await server.start()
    loading = asyncio.ensure_future(server.load())
    try:
        yield server, encoder, loaded
    finally:
        loaded.set()
        encoder.gate.set()
        await loading
        await server.stop(1.0)


def counted(server: CallServer) -> list[Metric]:
    """Returns the metric families that only grow."""
    return [family for family in server.metrics.registry.collect() if family.type in ("counter", "histogram")]


def series(server: CallServer) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Returns the names and labels of the series that only grow."""
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in counted(server)
        for sample in family.samples
    }


async def test_probes_and_the_gauge_follow_the_state() -> None:
    """The server is alive from the start and ready while serving; otherwise the body names its state."""
    async with loading_server(**_QUICK) as (server, encoder, loaded):
        assert await seen(server) == ("loading", (503, "loading\n"), (200, "ok\n"))

        loaded.set()
        await until(lambda: server.is_loaded and server.state == "serving")
        assert await seen(server) == ("serving", (200, "serving\n"), (200, "ok\n"))

        encoder.gate.clear()
        async with connect(server.port) as channel:
            stub = pb_grpc.AlignServiceStub(channel)
            stuck = asyncio.ensure_future(refused(stub.EmbedText(text_request("a"))))
            await until(lambda: server.state == "stalled")
            assert (await stuck).reason == "MODEL_STALLED"
        assert await seen(server) == ("stalled", (503, "stalled\n"), (200, "ok\n"))

        encoder.gate.set()
        await until(lambda: server.state == "serving")
        draining = asyncio.ensure_future(server.drain(math.inf))
        await until(lambda: server.state == "draining")
        assert await seen(server) == ("draining", (503, "draining\n"), (200, "ok\n"))
        draining.cancel()


async def test_probes_need_no_key(tmp_path: Path) -> None:
    """Probes work without a key, because orchestrators have none."""
    keys = tmp_path / "keys.json"
    with changed_keys(keys):
        pass
    async with running(api_keys_file=keys) as served:
        assert (await ask(served.server.metrics_port, "/readyz"))[0] == 200
        assert (await ask(served.server.metrics_port, "/healthz", "HEAD")) == (200, "")


async def test_without_metrics_there_is_no_port() -> None:
    """Probes are part of that port; gRPC health checks still work."""
    async with running(metrics_listen=None) as served:
        assert served.server.metrics_port == 0


async def test_values_unknown_while_loading_have_no_series() -> None:
    """Lanes, busy time, queues and the model have no series yet: a 0 would distort quotients."""
    async with loading_server() as (server, _, loaded):
        before = {family.name: family.samples for family in server.metrics.registry.collect()}
        loaded.set()
        await until(lambda: server.state == "serving")
        after = {family.name: family.samples for family in server.metrics.registry.collect()}

    unknown = {name for name, samples in after.items() if samples and not before[name]}
    assert unknown >= {
        "alignserve_lanes",
        "alignserve_device_busy_seconds",
        "alignserve_device_memory_bytes",
        "alignserve_max_batch_size",
        "alignserve_model_info",
        "alignserve_model_min_cosine_similarity",
        "alignserve_queue_entries",
        "alignserve_queue_bytes",
        "alignserve_label_cache_entries",
        "alignserve_embedding_cache_entries",
    }
    known = {"alignserve_uploads", "alignserve_streams", "alignserve_unread_response_bytes"}
    known |= {"alignserve_items_in_flight", "alignserve_caller_waiting_items", "alignserve_state"}
    gauges = {name for name in before if name.startswith("alignserve") and before[name]}
    types = {family.name: family.type for family in server.metrics.registry.collect()}
    assert {name for name in gauges if types[name] == "gauge"} == known
    assert not before["alignserve_last_forward_timestamp_seconds"]
    assert not after["alignserve_last_forward_timestamp_seconds"]  # a warm-up is not a batch


async def test_counters_have_series_before_the_first_event() -> None:
    """A rate misses the event that creates a series, such as the first error with a code."""
    async with running() as served:
        before = series(served.server)

        await served.stub.EmbedText(text_request("one"))
        await served.stub.EmbedText(text_request("one", "two"), metadata=[("alignserve-priority", "bulk")])
        await served.stub.EmbedImage(image_request(b"cat"))
        await served.stub.Classify(classify_request(b"cat", "a cat"))
        await served.stub.GetModelInfo(pb.GetModelInfoRequest())
        await refused(served.stub.EmbedText(pb.EmbedTextRequest()))
        await refused(served.stub.EmbedImage(image_request(b"broken")))
        await refused(served.stub.EmbedText(text_request("a"), metadata=[("alignserve-priority", "x")]))
        served.encoder.failing = {served.encoder.key("poison")}
        await refused(served.stub.EmbedText(text_request("poison")))
        items = [pb.StreamInferRequest(correlation_id="1", embed_text=text_request("a stream"))]
        async for _ in served.stub.StreamInfer(iter(items)):
            pass

        assert series(served.server) == before
        assert [family.name for family in counted(served.server) if not family.samples] == []


async def test_errors_can_be_counted_by_every_code_and_reason_from_the_start() -> None:
    """Series exist for each method of the API, and also for health and reflection."""
    async with running() as served:
        page = series(served.server)

    codes = {
        (dict(labels)["grpc_method"], dict(labels)["grpc_code"])
        for name, labels in page
        if name == "grpc_server_handled_total"
    }
    methods = ("EmbedImage", "EmbedText", "Classify", "StreamInfer", "GetModelInfo", "Check", "Watch")
    for method in (*methods, "ServerReflectionInfo"):
        assert {(method, "OK"), (method, "INTERNAL"), (method, "UNAVAILABLE")} <= codes
    reasons = {dict(labels)["reason"] for name, labels in page if name == "alignserve_rejected_total"}
    assert reasons >= {"QUEUE_FULL", "MODEL_LOADING", "MODEL_STALLED", "KEY_MISSING", "ARGUMENT_INVALID"}
    assert not reasons & {"INTERNAL", "INFERENCE_FAILED", "EXPIRED_IN_QUEUE"}


@pytest.mark.parametrize(
    ("texts", "metadata", "priority", "size"),
    [
        (["a"], [], "interactive", "single"),
        (["a", "b"], [], "interactive", "batch"),
        (["a"], [("alignserve-priority", "bulk")], "bulk", "single"),
        (["a", "b"], [("alignserve-priority", "bulk")], "bulk", "batch"),
        (["a"], [("alignserve-priority", "of my own")], "interactive", "single"),
    ],
)
async def test_calls_are_timed_by_priority_and_size(texts, metadata, priority, size) -> None:
    """A latency target can then cover small urgent calls only; no caller can add a label."""
    async with running() as served:
        call = served.stub.EmbedText(text_request(*texts), metadata=metadata)
        await asyncio.gather(call, return_exceptions=True)

        found = {
            (sample.labels["priority"], sample.labels["size"])
            for family in served.server.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "grpc_server_handling_seconds_count" and sample.value
        }
    assert found == {(priority, size)}


async def test_each_worker_has_a_state_and_readiness_needs_all() -> None:
    """A restarted worker is loading, and the page and the probe always show it."""
    async with server_process("--workers", "2", "--drain-delay-seconds", "0") as process:
        port = (await process.event("listening"))["metrics_port"]
        while (await ask(port, "/readyz")) != (200, "serving\n"):
            pass
        await process.event("ready")
        _, page = await ask(port, "/metrics")

        assert await ask(port, "/healthz") == (200, "ok\n")
        assert (await ask(port, "/elsewhere"))[0] == 404
    for worker in "01":
        for state in STATES:
            line = f'alignserve_state{{state="{state}",worker="{worker}"}} {float(state == "serving")}'
            assert line in page
