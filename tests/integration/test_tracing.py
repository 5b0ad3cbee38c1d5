"""The records of a call: spans at a collector, a line in the access log, exemplars in metrics."""

from __future__ import annotations

import asyncio
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve_server.errors import StartupError
from alignserve_server.rpc.methods import SERVICE
from alignserve_server.serving.server import Server
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.proto.trace.v1.trace_pb2 import Status as OtlpStatus
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, rpc_attributes
from opentelemetry.semconv._incubating.attributes.gen_ai_attributes import GenAiOperationNameValues
from opentelemetry.semconv._incubating.attributes.rpc_attributes import RpcSystemNameValues
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from tests.collector import Collector, attributes, collecting
from tests.contract.documents import read, rows
from tests.integration.open_inference import call_of, infer, texts
from tests.integration.serving import (
    RunningServer,
    classify_request,
    image_request,
    refused,
    running,
    settings,
    text_request,
    until,
)

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = ("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-01")
UNSAMPLED = ("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-00")
SECRET = "what a caller sent"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        yield collector


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines


def calls(lines: list[Any]) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == "call"]


@asynccontextmanager
async def holding(server: RunningServer) -> AsyncIterator[None]:
    """Keeps the lane busy, so that calls wait and then share the next batch."""
    server.encoder.gate.clear()
    first = asyncio.ensure_future(server.stub.EmbedText(text_request("ahead of the others")))
    await until(lambda: server.encoder.batches != [])
    yield
    server.encoder.gate.set()
    await first


@pytest.mark.shapes
async def test_the_steps_of_a_call_are_spans_in_its_callers_trace(collector: Collector) -> None:
    """The steps follow each other within the call's span, with attributes."""
    async with running(tracing=True) as server:
        await server.stub.EmbedText(text_request("a cat", "a dog"), metadata=[SAMPLED])

    (call,) = collector.named("alignserve.v1.AlignService/EmbedText")
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE_ID, SPAN_ID)
    assert call.kind == Span.SPAN_KIND_SERVER
    steps = [span for name in STEPS for span in collector.named(name)]
    assert [step.name for step in steps] == list(STEPS)
    assert {(step.trace_id, step.parent_span_id) for step in steps} == {(call.trace_id, call.span_id)}
    times = [time for step in steps for time in (step.start_time_unix_nano, step.end_time_unix_nano)]
    assert [call.start_time_unix_nano, *times, call.end_time_unix_nano] == sorted(
        [call.start_time_unix_nano, *times, call.end_time_unix_nano]
    )
    assert attributes(steps[1]) == {"modality": "text", "items": 2}


STEPS = ("admission", "preprocess", "queue", "compute", "respond")


@pytest.mark.shapes
async def test_a_batch_is_linked_with_each_of_its_calls(collector: Collector) -> None:
    """Each call has a link to the batch, and the batch has one to each call."""
    async with running(tracing=True) as server, holding(server):
        requests = [server.stub.EmbedText(text_request(f"text {i}")) for i in range(3)]
        await until(lambda: server.waiting("text") == 3)
        server.encoder.gate.set()
        await asyncio.gather(*requests)

    (batch,) = [span for span in collector.named("batch") if attributes(span)["batch_size"] == 3]
    linked = {link.span_id for link in batch.links}
    members = [s for s in collector.named("alignserve.v1.AlignService/EmbedText") if s.span_id in linked]
    assert len({member.trace_id for member in members}) == len(linked) == 3
    computes = [span for span in collector.named("compute") if span.parent_span_id in linked]
    assert [[link.span_id for link in span.links] for span in computes] == 3 * [[batch.span_id]]


async def test_a_batch_also_counts_calls_that_are_not_sampled(collector: Collector) -> None:
    """Callers decide which calls are sampled; the size of the batch includes all of them."""
    async with running(tracing=True) as server, holding(server):
        followed = server.stub.EmbedText(text_request("followed"), metadata=[SAMPLED])
        other = server.stub.EmbedText(text_request("not sampled"), metadata=[UNSAMPLED])
        await until(lambda: server.waiting("text") == 2)
        server.encoder.gate.set()
        await asyncio.gather(followed, other)

    (batch,) = [span for span in collector.named("batch") if attributes(span)["batch_size"] == 2]
    assert len(batch.links) == 1


async def test_calls_of_an_unsampled_trace_make_no_spans(collector: Collector) -> None:
    """The server respects the caller's sampling decision."""
    async with running(tracing=True) as server:
        await server.stub.EmbedText(text_request("a cat"), metadata=[UNSAMPLED])

    assert collector.spans == []


@pytest.mark.parametrize("value", ["", "nonsense", f"00-{'0' * 32}-{SPAN_ID}-01", "00-" + "f" * 900])
async def test_a_broken_traceparent_starts_a_new_trace(collector: Collector, value: str) -> None:
    """W3C Trace Context requires it."""
    async with running(tracing=True) as server:
        await server.stub.EmbedText(text_request("a cat"), metadata=[("traceparent", value)])

    (call,) = collector.named("alignserve.v1.AlignService/EmbedText")
    assert call.parent_span_id == b""


async def test_each_item_of_a_stream_is_a_span(collector: Collector) -> None:
    """Item spans are children of the stream's span, and a failed item's span says why."""
    async with running(tracing=True) as server:
        requests = [
            pb.StreamInferRequest(correlation_id="good", embed_text=pb.EmbedTextRequest(texts=["a cat"])),
            pb.StreamInferRequest(correlation_id="bad", embed_text=pb.EmbedTextRequest(texts=[" "])),
        ]
        async for _ in server.stub.StreamInfer(iter(requests)):
            pass

    (stream,) = collector.named("alignserve.v1.AlignService/StreamInfer")
    items = collector.named("item")
    assert {item.parent_span_id for item in items} == {stream.span_id}
    codes = sorted(str(attributes(item)["rpc.status_code"]) for item in items)
    assert codes == ["INVALID_ARGUMENT", "OK"]
    (queue,) = collector.named("queue")
    assert queue.parent_span_id in {item.span_id for item in items}


async def test_the_open_inference_protocol_is_traced_alike(collector: Collector) -> None:
    """A call has a span with the steps of its work, and a request of a stream is an item."""
    async with running(tracing=True) as server:
        await infer(server.channel, texts("one"), metadata=[SAMPLED])
        stream = call_of(server.channel, "ModelStreamInfer")(iter([texts("two"), texts(" ")]))
        assert len([response async for response in stream]) == 2

    (call,) = collector.named("inference.GRPCInferenceService/ModelInfer")
    assert call.trace_id.hex() == TRACE_ID
    assert attributes(call)["rpc.status_code"] == "OK"
    (stream_span,) = collector.named("inference.GRPCInferenceService/ModelStreamInfer")
    items = collector.named("item")
    assert {item.parent_span_id for item in items} == {stream_span.span_id}
    assert sorted(str(attributes(item)["rpc.status_code"]) for item in items) == ["INVALID_ARGUMENT", "OK"]
    assert {span.parent_span_id for span in collector.named("queue")} >= {call.span_id}


async def test_labels_that_are_not_cached_are_their_own_step(collector: Collector) -> None:
    """The second call finds the labels in the cache."""
    async with running(tracing=True) as server:
        for _ in range(2):
            await server.stub.Classify(classify_request(b"an image", "cat", "dog"))

    assert len(collector.named("alignserve.v1.AlignService/Classify")) == 2
    assert len(collector.named("labels")) == 1


async def test_a_failed_call_has_its_reason_but_no_input(collector: Collector) -> None:
    """Code and reason are from closed sets."""
    async with running(tracing=True) as server:
        await refused(server.stub.EmbedImage(image_request(b"broken " + SECRET.encode())))

    (call,) = collector.named("alignserve.v1.AlignService/EmbedImage")
    assert attributes(call)["rpc.status_code"] == "INVALID_ARGUMENT"
    assert attributes(call)["alignserve.reason"] == "IMAGE_UNREADABLE"
    assert SECRET not in str(collector.spans)


async def test_an_embedding_call_follows_opentelemetrys_conventions(collector: Collector) -> None:
    """Names are those of the conventions; tokens count even if their text is cached."""
    async with running(tracing=True) as server:
        for _ in range(2):
            await server.stub.EmbedText(text_request("a cat", "a dog here"))
        await server.stub.EmbedImage(image_request(b"an image"))

    embeds = {
        gen_ai_attributes.GEN_AI_OPERATION_NAME: GenAiOperationNameValues.EMBEDDINGS.value,
        gen_ai_attributes.GEN_AI_PROVIDER_NAME: "alignserve",
        gen_ai_attributes.GEN_AI_REQUEST_MODEL: "fake",
        gen_ai_attributes.GEN_AI_RESPONSE_MODEL: "fake",
        gen_ai_attributes.GEN_AI_EMBEDDINGS_DIMENSION_COUNT: 8,
    }
    texts = [attributes(span) for span in collector.named(f"{SERVICE}/EmbedText")]
    (image,) = [attributes(span) for span in collector.named(f"{SERVICE}/EmbedImage")]
    assert (
        texts
        == [{**called("EmbedText", "OK"), **embeds, gen_ai_attributes.GEN_AI_USAGE_INPUT_TOKENS: 4 + 5}] * 2
    )
    assert image == {**called("EmbedImage", "OK"), **embeds}


async def test_an_embedding_item_follows_the_conventions_too(collector: Collector) -> None:
    """The stream's own span does not: it may have items of every kind."""
    async with running(tracing=True) as server:
        requests = [
            pb.StreamInferRequest(correlation_id="0", embed_text=text_request("a cat")),
            pb.StreamInferRequest(correlation_id="1", classify=classify_request(b"an image", "cat")),
        ]
        async for _ in server.stub.StreamInfer(iter(requests)):
            pass

    (stream,) = collector.named(f"{SERVICE}/StreamInfer")
    operations = [attributes(item).get("gen_ai.operation.name") for item in collector.named("item")]
    assert attributes(stream) == called("StreamInfer", "OK")
    assert sorted(operations, key=str) == [None, "embeddings"]


async def test_the_documents_name_every_attribute_of_a_call(collector: Collector) -> None:
    """They name no others: users write queries from that table."""
    async with running(tracing=True) as server:
        server.encoder.failing.add(server.encoder.key("poison"))
        await refused(server.stub.EmbedText(text_request("poison")))
        await server.stub.EmbedText(text_request("a cat"))

    found = {name for span in collector.named(f"{SERVICE}/EmbedText") for name in attributes(span)}
    table = rows(read("server/docs/traces.md"), "attribute", "of", "meaning")
    assert found == {name for row in table for name in row["attribute"].split("`, `")}


async def test_only_failures_of_the_server_are_errors(collector: Collector) -> None:
    """A caller's mistake does not mark the server's span as an error, as the gRPC conventions require."""
    async with running(tracing=True) as server:
        await refused(server.stub.EmbedText(text_request(" ")))
        server.encoder.failing.add(server.encoder.key("poison"))
        await refused(server.stub.EmbedText(text_request("poison")))

    spans = collector.named(f"{SERVICE}/EmbedText")
    ends = {
        attributes(span)["rpc.status_code"]: (
            attributes(span).get("error.type"),
            attributes(span)["alignserve.reason"],
            span.status.code,
        )
        for span in spans
    }
    assert ends == {
        "INVALID_ARGUMENT": (None, "TEXT_EMPTY", OtlpStatus.STATUS_CODE_UNSET),
        "INTERNAL": ("INTERNAL", "INFERENCE_FAILED", OtlpStatus.STATUS_CODE_ERROR),
    }


def called(method: str, code: str) -> dict[str, str]:
    """Returns the attributes that the span of an RPC has."""
    # Version 1.44 of the conventions renamed `rpc.response.status_code`; their package lags behind.
    return {
        rpc_attributes.RPC_SYSTEM_NAME: RpcSystemNameValues.GRPC.value,
        rpc_attributes.RPC_METHOD: f"{SERVICE}/{method}",
        "rpc.status_code": code,
    }


async def test_health_checks_are_not_traced(collector: Collector, lines: list[Any]) -> None:
    """They arrive every second, and would crowd out other spans."""
    async with running(tracing=True, access_log_sample_ratio=1.0) as server:
        await health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest())

    assert collector.spans == []
    assert calls(lines) == []


async def test_the_operators_variables_name_the_service(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenTelemetry's variables override the server's own name."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "align-eu")
    async with running(tracing=True) as server:
        await server.stub.EmbedText(text_request("a cat"))

    assert collector.resource["service.name"] == "align-eu"
    assert collector.resource["service.version"]


async def test_an_unreachable_collector_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are served, and the server stops."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    async with running(tracing=True) as server:
        response = await server.stub.EmbedText(text_request("a cat"))

    assert len(response.embeddings) == 1


async def test_tracing_without_its_extra_prevents_startup(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)

    with pytest.raises(StartupError, match=r"pip install 'alignserve\[server,otel\]'"):
        Server(settings(tracing=True), lambda _: pytest.fail("not loaded"))


@pytest.mark.shapes
async def test_a_call_is_one_line_with_its_timings(lines: list[Any]) -> None:
    """The line has the same steps as the spans, and the caller's trace id, even without spans."""
    async with running(access_log_sample_ratio=1.0) as server:
        await server.stub.EmbedText(text_request("a cat", SECRET), metadata=[SAMPLED])

    (line,) = calls(lines)
    assert (line["method"], line["code"], line["trace_id"]) == ("EmbedText", "OK", TRACE_ID)
    assert (line["modality"], line["items"], line["batch_size"]) == ("text", 2, 2)
    steps = [line[f"{name}_seconds"] for name in STEPS]
    assert 0 < sum(steps) <= line["seconds"] + 1e-5
    assert SECRET not in str(line)


async def test_a_refused_call_is_a_line_with_its_reason(lines: list[Any]) -> None:
    """Calls that never reached the queue have a line too."""
    async with running(access_log_sample_ratio=1.0) as server:
        await refused(server.stub.EmbedText(pb.EmbedTextRequest()))

    (line,) = calls(lines)
    assert (line["code"], line["reason"]) == ("INVALID_ARGUMENT", "REQUEST_EMPTY")


async def test_a_stream_is_one_line(lines: list[Any]) -> None:
    """A stream has one access log line, however many items it has."""
    async with running(access_log_sample_ratio=1.0) as server:
        requests = [
            pb.StreamInferRequest(correlation_id=str(i), embed_text=pb.EmbedTextRequest(texts=[f"text {i}"]))
            for i in range(5)
        ]
        async for _ in server.stub.StreamInfer(iter(requests)):
            pass

    (line,) = calls(lines)
    assert (line["method"], line["code"], line["items"]) == ("StreamInfer", "OK", 5)


async def test_no_call_is_logged_unless_asked_for(lines: list[Any]) -> None:
    """By default there is no access log."""
    async with running() as server:
        await server.stub.EmbedText(text_request("a cat"))

    assert calls(lines) == []


async def test_sampling_of_the_log_keeps_whole_traces(lines: list[Any]) -> None:
    """All calls of a trace are logged, or none; over many traces the ratio is about the one set."""
    traces = [f"{trace << 57:032x}" for trace in range(1, 128)]  # spread evenly
    async with running(access_log_sample_ratio=0.25) as server:
        for trace_id in traces + traces:
            metadata = [("traceparent", f"00-{trace_id}-{SPAN_ID}-00")]
            await server.stub.EmbedText(text_request("a cat"), metadata=metadata)

    logged = [line["trace_id"] for line in calls(lines)]
    assert len(logged) == 2 * len(set(logged)) == 2 * 31


@pytest.mark.whole
async def test_exemplars_lead_from_histograms_to_traces(collector: Collector) -> None:
    """They are in the OpenMetrics format, which Prometheus requests."""
    async with running(tracing=True) as server:
        await server.stub.EmbedText(text_request("a cat"), metadata=[SAMPLED])
        exemplars = await asyncio.to_thread(_exemplars, server.server.metrics_port)

    assert exemplars == {
        "grpc_server_handling_seconds": {TRACE_ID},
        "alignserve_preprocess_seconds": {TRACE_ID},
        "alignserve_queue_wait_seconds": {TRACE_ID},
        "alignserve_batch_compute_seconds": {TRACE_ID},
    }
    assert collector.spans


def _exemplars(metrics_port: int) -> dict[str, set[str]]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{metrics_port}/metrics", headers={"Accept": "application/openmetrics-text"}
    )
    with urllib.request.urlopen(request, timeout=30.0) as page:  # noqa: S310 — the test's own server
        families = list(text_string_to_metric_families(page.read().decode()))
    found: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            if sample.exemplar is not None:
                found.setdefault(family.name, set()).add(sample.exemplar.labels["trace_id"])
    return found
