"""The fake server that users test with."""

from __future__ import annotations

import alignserve
import grpc
import numpy as np
import pytest
from alignserve import Client
from alignserve.testing import FakeServer


def test_the_same_input_gives_the_same_vector_everywhere() -> None:
    """Vectors are of length 1 and a function of input and dimension alone."""
    with FakeServer() as one, FakeServer() as other:
        vectors = [Client(server.target) for server in (one, other)]
        first, second = (client.embed_text("a cat") for client in vectors)
        for client in vectors:
            client.close()

    assert np.array_equal(first, second)
    assert np.linalg.norm(first) == pytest.approx(1.0)


def test_it_has_the_limits_that_it_tells(server: FakeServer, client: Client) -> None:
    """What a real server refuses for its shape, the fake refuses with the same reasons."""
    reasons = []
    for call in (
        lambda: client.embed_text("word " * 100),
        lambda: client.embed_text(" "),
        lambda: client.classify(b"image", []),
    ):
        with pytest.raises(alignserve.InvalidArgumentError) as caught:
            call()
        reasons.append(caught.value.reason)

    assert reasons == ["TEXT_TOO_LONG", "TEXT_EMPTY", "LABELS_INVALID"]


def test_failures_are_used_up_in_order(server: FakeServer, client: Client) -> None:
    """A test can script several failures, and then success."""
    server.fail_next(grpc.StatusCode.INTERNAL, "FIRST")
    server.fail_next(grpc.StatusCode.INTERNAL, "SECOND")
    reasons = []
    for _ in range(2):
        with pytest.raises(alignserve.InternalError) as caught:
            client.embed_text("a")
        reasons.append(caught.value.reason)

    client.embed_text("a")

    assert reasons == ["FIRST", "SECOND"]


def test_what_arrives_is_recorded(server: FakeServer, client: Client) -> None:
    """Requests can be inspected, and waited for."""
    client.embed_text("a", truncate=True)
    server.wait_for_received(1)

    assert server.received[0].method == "EmbedText"
    assert server.received[0].request.truncate


def test_waiting_for_what_does_not_arrive_ends(server: FakeServer) -> None:
    """A test that waits for too much fails, and does not hang."""
    with pytest.raises(TimeoutError, match="0 of 1 messages"):
        server.wait_for_received(1, timeout_seconds=0.01)


def test_stub_clients_get_plain_lists_by_default(server: FakeServer) -> None:
    """A client in another language that asks for no format gets `values`."""
    from alignserve.v1 import align_service_pb2 as pb
    from alignserve.v1.align_service_pb2_grpc import AlignServiceStub

    with grpc.insecure_channel(server.target) as channel:
        reply = AlignServiceStub(channel).EmbedText(pb.EmbedTextRequest(texts=["a"]))

    assert np.allclose(reply.embeddings[0].values, server.embedding_of("a"))
