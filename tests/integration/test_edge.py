"""The edge of RPCs: malformed messages and unexpected exceptions leak nothing and never answer UNKNOWN."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from alignserve_server.access.authorization import Access
from alignserve_server.access.keys import KeyRing, Scope, changed_keys, new_key
from alignserve_server.api.accounting import Accounting, code_of_cancellation
from alignserve_server.api.method_rules import MethodRules
from alignserve_server.observability.metrics import Metrics
from alignserve_server.observability.tracing import Tracing
from alignserve_server.rpc.interceptors import ConnectionLimits, ServingInterceptor
from alignserve_server.rpc.methods import Methods
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from tests.integration.serving import (
    RunningServer,
    classify_request,
    image_request,
    refusal_of,
    refused,
    running,
    text_request,
    until,
)

SECRET = "secret=/etc/passwd"


class Failing(grpc.GenericRpcHandler):
    """A service of all four kinds of RPC, each of which raises once it has read its request."""

    parse = staticmethod(pb.EmbedTextRequest.FromString)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        kind = details.method.rpartition("/")[2]
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(
            getattr(self, kind),
            request_deserializer=self.parse,
            response_serializer=pb.EmbedTextResponse.SerializeToString,
        )

    async def unary_unary(self, request: Any, context: Any) -> None:
        raise ValueError(SECRET)

    async def unary_stream(self, request: Any, context: Any) -> AsyncIterator[pb.EmbedTextResponse]:
        yield pb.EmbedTextResponse()
        raise ValueError(SECRET)

    async def stream_unary(self, requests: AsyncIterator[Any], context: Any) -> None:
        async for _ in requests:
            raise ValueError(SECRET)

    async def stream_stream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for _ in requests:
            yield pb.EmbedTextResponse()
            raise ValueError(SECRET)


KINDS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]
METHODS = {"test.Failing": dict.fromkeys(KINDS, MethodRules(scopes=frozenset(Scope), is_traced=False))}


def new_interceptor(
    metrics: Metrics, methods: Methods = METHODS, access: Access | None = None
) -> ServingInterceptor:
    """Makes the interceptor of a server of those methods."""
    accounting = Accounting(metrics, access or Access(None), Tracing(None, 0.0))
    return ServingInterceptor(accounting, ConnectionLimits(5.0, 64, 64), methods)


@asynccontextmanager
async def channel_to(
    service: grpc.GenericRpcHandler, interceptor: ServingInterceptor | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    """Opens a channel to a server with the interceptor and the service."""
    interceptor = interceptor or new_interceptor(Metrics(CollectorRegistry()))
    server = grpc.aio.server(interceptors=[interceptor])
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    await server.stop(None)


class Late(grpc.aio.ServerInterceptor):
    """Holds calls, even cancelled ones, until the server has stopped."""

    def __init__(self) -> None:
        self.keeps_one = asyncio.Event()
        self.stopped = asyncio.Event()

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        self.keeps_one.set()
        while not self.stopped.is_set():
            with suppress(asyncio.CancelledError):
                await self.stopped.wait()
        return await continuation(details)


async def test_a_call_that_starts_after_grpc_has_stopped_is_not_a_bug() -> None:
    """It counts as cancelled; its client has seen the connection close."""
    metrics, late = Metrics(CollectorRegistry()), Late()
    interceptor = new_interceptor(metrics)
    server = grpc.aio.server(interceptors=[late, interceptor])
    server.add_generic_rpc_handlers((Failing(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        calling = asyncio.ensure_future(call(channel, "unary_unary", b""))
        await late.keeps_one.wait()
        await server.stop(None)
        late.stopped.set()
        with pytest.raises(grpc.aio.AioRpcError):
            await calling
    await until(lambda: bool(_handled(metrics)))

    assert _handled(metrics) == {"CANCELLED": 1}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_method_without_rules_is_refused(kind: str, tmp_path: Path) -> None:
    """Callers cannot reach a service registered without a table, even with a valid key."""
    with changed_keys(tmp_path / "keys.json") as keys:
        key, keys["search"] = new_key("search", frozenset(Scope))
    interceptor = new_interceptor(Metrics(CollectorRegistry()), {}, Access(KeyRing(tmp_path / "keys.json")))

    async with channel_to(Failing(), interceptor) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused_call:
            await call(channel, kind, b"", metadata=[("authorization", f"Bearer {key}")])

    assert refused_call.value.code() is grpc.StatusCode.UNIMPLEMENTED


def _handled(metrics: Metrics) -> dict[str, float]:
    """Returns how many calls have ended, by code."""
    (family,) = metrics.rpcs_handled.collect()
    return {
        sample.labels["grpc_code"]: sample.value
        for sample in family.samples
        if sample.name.endswith("_total")
    }


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the failing service."""
    async with channel_to(Failing()) as opened:
        yield opened


async def call(channel: grpc.aio.Channel, kind: str, message: bytes, **options: Any) -> None:
    """Sends raw bytes as one kind of RPC and reads it to its end."""
    rpc = getattr(channel, kind)(f"/test.Failing/{kind}")(
        iter([message]) if kind.startswith("stream") else message, **options
    )
    if kind.endswith("unary"):
        await rpc
    else:
        async for _ in rpc:
            pass


@pytest.mark.parametrize("kind", KINDS)
async def test_malformed_protobuf_is_an_invalid_argument(channel: grpc.aio.Channel, kind: str) -> None:
    """Malformed messages are the caller's error, in every kind of RPC."""
    error = await refused(call(channel, kind, b"\xff\xff\xff"))

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED")


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unexpected_exception_reveals_only_an_id(channel: grpc.aio.Channel, kind: str) -> None:
    """The caller gets INTERNAL and an id to report; the exception's text stays in the log."""
    error = await refused(call(channel, kind, b""))

    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert error.metadata["error_id"] in error.message
    assert SECRET not in error.message
    assert SECRET not in str(error.trailers)


@pytest.mark.parametrize("kind", ["stream_unary", "stream_stream"])
async def test_a_stream_drops_raw_messages_once_they_are_parsed(kind: str) -> None:
    """A waiting item is held once; gRPC itself holds the raw bytes of unary calls until they end."""
    raw: list[bytes] = []
    references: list[int] = []

    class Counting(Failing):
        def parse(self, message: bytes) -> Any:
            raw.append(message)
            return "parsed"

        async def unary_unary(self, request: Any, context: Any) -> Any:
            references.append(sys.getrefcount(raw[0]))
            return pb.EmbedTextResponse()

        async def unary_stream(self, request: Any, context: Any) -> AsyncIterator[pb.EmbedTextResponse]:
            yield await self.unary_unary(request, context)

        async def stream_unary(self, requests: AsyncIterator[Any], context: Any) -> Any:
            async for request in requests:
                response = await self.unary_unary(request, context)
            return response

        async def stream_stream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            async for request in requests:
                yield await self.unary_unary(request, context)

    async with channel_to(Counting()) as opened:
        await call(opened, kind, b"x" * 10_000)

    assert references == [sys.getrefcount(raw[0])]


async def test_bad_utf8_in_a_string_is_an_invalid_argument(served: RunningServer) -> None:
    """A protobuf string that is not UTF-8 is refused like any malformed message."""
    raw: Any = served.channel.unary_unary("/alignserve.v1.AlignService/EmbedText")

    error = await refused(raw(b"\x0a\x02\xff\xfe"))

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED")


async def test_an_unknown_method_is_unimplemented_and_adds_no_series(served: RunningServer) -> None:
    """Method names that callers invent do not become series."""
    made_up: Any = served.channel.unary_unary("/alignserve.v1.AlignService/MadeUp")
    error = await refused(made_up(b""))

    names = {
        sample.labels["grpc_method"]
        for family in served.server.metrics.registry.collect()
        for sample in family.samples
        if "grpc_method" in sample.labels
    }
    assert error.code is grpc.StatusCode.UNIMPLEMENTED
    assert "MadeUp" not in names


async def test_a_message_over_the_limit_is_refused_before_it_is_read(served: RunningServer) -> None:
    """gRPC's own limit answers RESOURCE_EXHAUSTED."""
    error = await refused(served.stub.EmbedImage(image_request(b"x" * (17 << 20))))

    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.long
async def test_a_burst_on_several_connections_is_served_or_refused() -> None:
    """gRPC's own limit on pending calls would drop some of the 3000 with a bare CANCELLED."""
    async with running(max_queue_size=1500) as served, AsyncExitStack() as stack:
        address, own = f"127.0.0.1:{served.server.port}", [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, own)) for _ in range(4)
        ]
        stubs = [pb_grpc.AlignServiceStub(channel) for channel in channels]

        calls = [stub.EmbedText(text_request(f"t {i}")) for i in range(750) for stub in stubs]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)

        refusals = [refusal_of(o) for o in outcomes if isinstance(o, grpc.aio.AioRpcError)]
        assert {refusal.reason for refusal in refusals} <= {"QUEUE_FULL"}
        assert None not in {refusal.retry_delay_seconds for refusal in refusals}
        assert len(outcomes) - len(refusals) >= 1500


@pytest.mark.parametrize(
    ("seconds_remaining", "code"),
    [(None, "CANCELLED"), (1.0, "CANCELLED"), (0.01, "DEADLINE_EXCEEDED"), (0.0, "DEADLINE_EXCEEDED")],
)
def test_a_reset_just_before_the_deadline_counts_as_the_deadline(
    seconds_remaining: float | None, code: str
) -> None:
    """A client whose deadline passes resets the call slightly before the server's timer fires."""
    assert code_of_cancellation(seconds_remaining) == code


async def test_reflection_lists_the_services(served: RunningServer) -> None:
    """Tools find the API without the protos."""
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")

    (response,) = [r async for r in stub.ServerReflectionInfo(iter([request]))]

    names = {service.name for service in response.list_services_response.service}
    assert {"alignserve.v1.AlignService", "grpc.health.v1.Health"} <= names


async def test_known_traffic_gives_exactly_the_expected_counts(served: RunningServer) -> None:
    """accepted = ok + failed + cancelled + expired + in flight, and calls by code."""
    for i in range(7):
        await served.stub.EmbedText(text_request(f"a {i}", f"b {i}"))
    for i in range(3):
        await served.stub.EmbedImage(image_request(f"image {i}".encode()))
    for _ in range(2):
        await refused(served.stub.EmbedImage(image_request(b"fine", b"broken")))
    await refused(served.stub.EmbedText(pb.EmbedTextRequest()))

    def handled(method: str, code: str) -> float:
        return served.sample(
            "grpc_server_handled_total",
            grpc_type="unary",
            grpc_service="alignserve.v1.AlignService",
            grpc_method=method,
            grpc_code=code,
        )

    zero = {"in_flight": 0, "cancelled": 0, "expired": 0}
    assert served.items("text") == {"accepted": 14, "ok": 14, "failed": 0, **zero}
    assert served.items("image") == {"accepted": 7, "ok": 3, "failed": 4, **zero}
    assert handled("EmbedText", "OK") == 7
    assert handled("EmbedText", "INVALID_ARGUMENT") == 1
    assert handled("EmbedImage", "OK") == 3
    assert handled("EmbedImage", "INVALID_ARGUMENT") == 2
    assert served.sample("alignserve_rejected_total", reason="IMAGE_UNREADABLE") == 2
    assert served.sample("alignserve_rejected_total", reason="REQUEST_EMPTY") == 1
    assert served.sample("alignserve_batch_size_sum", modality="text") == 14
    assert served.sample("alignserve_batch_size_sum", modality="image") == 3


async def test_no_caller_can_add_series_to_the_metrics(served: RunningServer) -> None:
    """Whatever is sent, however it ends, from any caller: the second hundred calls add no series."""
    await _all_kinds_of_calls(served, "first")
    # the watchdog's first check
    await until(lambda: ("alignserve_event_loop_tasks", ()) in _series(served))
    before = _series(served)

    for number in range(100):
        await _all_kinds_of_calls(served, f"number {number}")

    assert _series(served) == before
    assert len(before) < 1500


async def _all_kinds_of_calls(served: RunningServer, what: str) -> None:
    stub = served.stub
    await stub.EmbedText(text_request(what), metadata=[("x-anything", what)])
    await stub.EmbedImage(image_request(what.encode()))
    await stub.Classify(classify_request(what.encode(), f"label {what}"))
    await stub.GetModelInfo(pb.GetModelInfoRequest())
    await refused(stub.EmbedImage(image_request(b"broken " + what.encode())))
    await refused(stub.EmbedText(text_request(""), metadata=[("alignserve-priority", what)]))
    unknown: Any = served.channel.unary_unary(f"/no.Such/{what.replace(' ', '')}")
    await refused(unknown(b""))
    items = [pb.StreamInferRequest(correlation_id=what, embed_text=pb.EmbedTextRequest(texts=[what]))]
    async for _ in stub.StreamInfer(iter(items)):
        pass


def _series(served: RunningServer) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in served.server.metrics.registry.collect()
        for sample in family.samples
    }
