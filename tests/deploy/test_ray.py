"""The shipped configuration of Ray Serve, in a real Ray cluster with two replicas.

The tests imported from `tests.integration` run again here, through Ray Serve's proxy. The others stop the
encoder, inspect its batches, or need the same replica twice.
"""

# ruff: noqa: F401 — pytest collects the imported tests

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import grpc
import numpy as np
import pytest
import yaml
from alignserve import Client, TextItem
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from alignserve_server.model.fake import FakeEncoder

from tests.deploy.ray_serve import CONFIG, MANIFEST, REPLICAS, RayServe, running_ray_serve
from tests.integration.serving import classify_request, connect, image_request, refused, text_request, until
from tests.integration.test_stream import (
    test_a_bad_item_fails_and_the_stream_continues,
    test_a_failed_item_carries_a_full_status,
    test_each_item_gets_its_own_result,
    test_items_are_answered_once_each,
)
from tests.integration.test_unary import (
    test_a_long_text_is_refused_unless_truncation_is_allowed,
    test_a_request_over_a_limit_is_refused_with_the_field_at_fault,
    test_answers_follow_the_order_of_the_request,
    test_classify_scores_all_images_against_all_labels,
    test_each_format_carries_the_vector_in_its_own_field,
    test_every_bad_image_of_a_call_is_named_and_none_reaches_the_device,
    test_model_info_publishes_model_and_limits,
    test_stats_are_sent_only_on_request,
    vector,
)
from tests.processes import ROOT

pytestmark = pytest.mark.contract


@dataclass
class Served:
    """The interface of a running server that integration tests use."""

    ray_serve: RayServe
    encoder: FakeEncoder  # computes the expected embeddings
    channel: grpc.aio.Channel
    stub: pb_grpc.AlignServiceAsyncStub

    def sample(self, name: str, **labels: str) -> float:
        """Returns one value of /metrics, summed over the replicas."""
        return sum(self.ray_serve.samples(name, **labels))

    def items(self, modality: str) -> dict[str, float]:
        """Returns how many items are in flight, and how many were answered."""
        return {
            "in_flight": self.sample("alignserve_items_in_flight", modality=modality),
            "ok": self.sample("alignserve_items_total", modality=modality, outcome="ok"),
        }

    async def until(self, value: float, name: str, **labels: str) -> None:
        """Waits until the replicas together show a value."""
        await until(lambda: self.sample(name, **labels) == value)


@pytest.fixture(scope="module")
def ray_serve() -> Iterator[RayServe]:
    """Two replicas behind the proxy."""
    if find_spec("ray") is None:
        pytest.skip("no ray; pip install --group ray")
    with running_ray_serve() as application:
        with Client(application.address) as client:
            client.wait_until_ready()
        yield application


@pytest.fixture
async def served(ray_serve: RayServe) -> AsyncIterator[Served]:
    """The interface for tests, with its own channel."""
    async with connect(ray_serve.port) as channel:
        yield Served(ray_serve, FakeEncoder(640), channel, pb_grpc.AlignServiceStub(channel))


def test_the_manifest_deploys_the_shipped_configuration() -> None:
    """kuberay.yaml contains serve_config.yaml, and names the version of Ray tested here."""
    service = next(yaml.safe_load_all(MANIFEST.read_text()))["spec"]
    (pinned,) = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)

    assert yaml.safe_load(service["serveConfigV2"]) == yaml.safe_load(CONFIG.read_text())
    assert service["rayClusterConfig"]["rayVersion"] == pinned


async def test_both_replicas_serve_and_each_caller_gets_its_own_result(served: Served) -> None:
    """Calls of one connection are spread over the replicas, and each answer reaches its caller."""
    before = served.ray_serve.samples("alignserve_items_total", modality="text", outcome="ok")
    texts = iter([f"text number {number}" for number in range(1000)])

    async def caller() -> list[bool]:
        right = []
        for text in texts:
            response = await served.stub.EmbedText(text_request(text))
            expected = served.encoder.embedding_of(text)
            right.append(np.allclose(vector(response.embeddings[0]), expected, atol=1e-6))
        return right

    answers = await asyncio.gather(*(caller() for _ in range(32)))

    after = served.ray_serve.samples("alignserve_items_total", modality="text", outcome="ok")
    shares = np.subtract(after, before)
    assert sum(map(sum, answers)) == sum(shares) == 1000
    assert len(shares) == REPLICAS
    assert min(shares) > 100


def test_the_client_needs_no_change(ray_serve: RayServe) -> None:
    """The client waits for readiness, embeds, classifies and streams as with any server."""
    encoder = FakeEncoder(640)
    texts = [f"text {number}" for number in range(100)]
    with Client(ray_serve.address) as client:
        client.wait_until_ready()
        embedding = client.embed_text("a text")
        (best,) = client.classify(b"an image", ["cat", "dog"], top_k=1)
        streamed = list(client.stream((TextItem(text) for text in texts), ordered=True))

    np.testing.assert_allclose(embedding, encoder.embedding_of("a text"), atol=1e-6)
    assert best.label in ("cat", "dog")
    for text, result in zip(texts, streamed, strict=True):
        np.testing.assert_allclose(result.embedding, encoder.embedding_of(text), atol=1e-6)


def endless_request(name: str) -> pb.ClassifyRequest:
    """Builds a request that takes longer than any test waits."""
    labels = (f"{name} {number}" for number in range(1000))
    templates = [f"{number} {{label}}" for number in range(100)]
    return classify_request(b"x", *labels, prompt_templates=templates)


async def test_a_call_that_its_client_cancels_leaves_the_queue(served: Served) -> None:
    """The cancellation reaches the replica, which drops the waiting items."""
    labels = {"grpc_method": "Classify", "grpc_code": "CANCELLED"}
    before = served.sample("grpc_server_handled_total", **labels)
    call = served.stub.Classify(endless_request("cancel"))
    await until(lambda: served.items("text")["in_flight"] > 0)

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    await served.until(before + 1, "grpc_server_handled_total", **labels)
    await served.until(0, "alignserve_items_in_flight", modality="text")


async def test_a_replica_knows_the_deadline_of_a_call(served: Served) -> None:
    """It counts a call as expired, unless the cancellation arrives before its own, later timer."""
    labels = {"grpc_method": "Classify", "grpc_code": "DEADLINE_EXCEEDED"}
    before = served.sample("grpc_server_handled_total", **labels)

    while served.sample("grpc_server_handled_total", **labels) == before:
        error = await refused(served.stub.Classify(endless_request("deadline"), timeout=0.5))
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED

    await served.until(0, "alignserve_items_in_flight", modality="text")


async def test_a_stream_that_its_client_cancels_ends_on_the_replica(served: Served) -> None:
    """Nothing is left, and it does not count as a failure, though Ray Serve may see a normal end."""
    ended, stream = "grpc_server_handled_total", {"grpc_method": "StreamInfer"}
    before = served.sample(ended, **stream)
    failed = served.sample(ended, **stream, grpc_code="INTERNAL")
    call = served.stub.StreamInfer()
    await call.write(pb.StreamInferRequest(correlation_id="a", embed_text=text_request("a")))
    await call.read()

    call.cancel()

    await served.until(before + 1, ended, **stream)
    assert served.sample(ended, **stream, grpc_code="INTERNAL") == failed


async def test_the_error_that_ends_a_stream_has_all_details(served: Served) -> None:
    """An empty message carries it as far as the proxy, which drops the message."""
    call = served.stub.StreamInfer()
    await call.write(
        pb.StreamInferRequest(stream_options=pb.StreamOptions(delivery_order=pb.DeliveryOrder.ValueType(9)))
    )

    error = await refused(call.read())

    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.message.startswith("stream_options.delivery_order: order 9 is unknown")
    assert (error.reason, error.fields) == ("ARGUMENT_INVALID", ["stream_options.delivery_order"])


async def test_the_largest_image_is_accepted(served: Served) -> None:
    """Neither the proxy nor its connection to the replica has a lower limit than the server."""
    image = bytes(10 << 20)

    response = await served.stub.EmbedImage(image_request(image))

    np.testing.assert_allclose(vector(response.embeddings[0]), served.encoder.embedding_of(image), atol=1e-6)


async def test_priority_is_passed_on(served: Served) -> None:
    """Metadata reaches the replica."""
    call = served.stub.EmbedText(text_request("a"), metadata=(("alignserve-priority", "urgent"),))

    error = await refused(call)

    assert error.reason == "ARGUMENT_INVALID"
    assert "alignserve-priority" in error.message


async def test_ray_serve_answers_malformed_messages(served: Served) -> None:
    """The proxy parses requests, and says UNKNOWN where a standalone server says REQUEST_MALFORMED."""
    call: Any = served.channel.unary_unary("/alignserve.v1.AlignService/EmbedText")

    error = await refused(call(b"\xff\xff\xff"))

    assert (error.code, error.reason) == (grpc.StatusCode.UNKNOWN, "")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
@pytest.mark.parametrize("setting", [{"tls_certificate": "c.pem", "tls_key": "k.pem"}, {"workers": 2}])
def test_settings_that_ray_serve_takes_over_are_refused(setting: dict[str, object]) -> None:
    """An operator must not believe that an unencrypted port is encrypted."""
    pytest.importorskip("ray")
    from deploy.ray.app import build

    with pytest.raises(ValueError, match="not supported in a replica"):
        build({"checkpoint": "fake", **setting})


async def test_health_can_be_checked_but_not_watched(served: Served) -> None:
    """Check answers for a replica; Watch is unimplemented."""
    check: Any = served.channel.unary_unary("/grpc.health.v1.Health/Check")
    watch: Any = served.channel.unary_stream("/grpc.health.v1.Health/Watch")

    serving = await check(b"")
    error = await refused(watch(b"").read())

    assert serving == b"\x08\x01"
    assert error.code is grpc.StatusCode.UNIMPLEMENTED
