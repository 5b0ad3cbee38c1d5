"""The fake server that users test with."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import alignserve
import grpc
import numpy as np
import pytest
from alignserve import Client, TextItem
from alignserve.testing import FakeServer
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1.align_service_pb2_grpc import AlignServiceStub


def test_the_same_input_gives_the_same_vector_everywhere() -> None:
    """Vectors have length 1 and depend only on the input and the dimension."""
    with FakeServer() as one, FakeServer() as other:
        vectors = [Client(server.target) for server in (one, other)]
        first, second = (client.embed_text("a cat") for client in vectors)
        for client in vectors:
            client.close()

    assert np.array_equal(first, second)
    assert np.linalg.norm(first) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda client: client.embed_text("word " * 100), "TEXT_TOO_LONG"),
        (lambda client: client.embed_text("x" * 40_000, truncate=True), "TEXT_TOO_LONG"),
        (lambda client: client.embed_text(" "), "TEXT_EMPTY"),
        (lambda client: client.embed_image(b""), "REQUEST_EMPTY"),
        (lambda client: client.embed_image(bytes((10 << 20) + 1)), "IMAGE_TOO_LARGE"),
        (lambda client: client.classify(b"image", []), "LABELS_INVALID"),
        (lambda client: client.classify(b"image", ["cat", " "]), "LABELS_INVALID"),
        (lambda client: client.classify(b"image", ["cat"] * 1001), "LABELS_INVALID"),
        (lambda client: client.classify(b"image", ["cat"], prompt_templates=["a"]), "TEMPLATE_INVALID"),
        (lambda client: client.classify(b"image", ["cat"], top_k=-1), "ARGUMENT_INVALID"),
    ],
)
def test_it_has_the_limits_that_it_tells(
    client: Client, call: Callable[[Client], object], reason: str
) -> None:
    """The fake refuses invalid requests with the same reasons as a real server."""
    with pytest.raises(alignserve.InvalidArgumentError) as caught:
        call(client)

    assert caught.value.reason == reason


def test_a_request_larger_than_it_tells_is_refused_by_grpc() -> None:
    """The fake enforces its limits like a real server."""
    with (
        FakeServer(max_request_bytes=1000) as small,
        grpc.insecure_channel(small.target) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        AlignServiceStub(channel).EmbedText(pb.EmbedTextRequest(texts=["x" * 2000]))

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_calls_do_not_wait_behind_open_streams(client: Client) -> None:
    """Calls work while many streams are open."""
    streams = [client.stream(TextItem(str(number)) for number in itertools.count()) for _ in range(40)]
    for stream in streams:
        next(stream)

    vector = client.embed_text("a", timeout_seconds=10)

    for stream in streams:
        stream.close()
    assert vector.shape == (8,)


def test_no_two_servers_of_a_process_have_the_same_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of a stopped server, never closed, would make the clients of the next one wait, or fail."""
    with FakeServer() as first:
        port = first.target.rpartition(":")[2]
    make = grpc.server
    offered: list[str] = []

    def offer_that_port_first(*args: Any, **options: Any) -> grpc.Server:
        server = make(*args, **options)
        bind = server.add_insecure_port

        def add_insecure_port(address: str) -> int:
            offered.append(address)
            return bind(f"127.0.0.1:{port}" if len(offered) == 1 else address)

        monkeypatch.setattr(server, "add_insecure_port", add_insecure_port)
        return server

    monkeypatch.setattr(grpc, "server", offer_that_port_first)

    with FakeServer() as second:
        assert second.target != first.target
        assert Client(second.target).embed_text("a").shape == (64,)
    assert offered == ["127.0.0.1:0"] * 2


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


def test_received_requests_are_recorded(server: FakeServer, client: Client) -> None:
    """Requests can be inspected and awaited."""
    client.embed_text("a", truncate=True)
    server.wait_for_received(1)

    assert server.received[0].method == "EmbedText"
    assert server.received[0].request.truncate


def test_waiting_for_requests_times_out(server: FakeServer) -> None:
    """Waiting for too many requests fails instead of hanging."""
    with pytest.raises(TimeoutError, match="0 of 1 messages"):
        server.wait_for_received(1, timeout_seconds=0.01)


def test_stub_clients_get_plain_lists_by_default(server: FakeServer) -> None:
    """A client that requests no format gets `values`."""
    with grpc.insecure_channel(server.target) as channel:
        reply = AlignServiceStub(channel).EmbedText(pb.EmbedTextRequest(texts=["a"]))

    assert np.allclose(reply.embeddings[0].values, server.embedding_of("a"))


def test_a_test_can_set_vectors_and_scores(server: FakeServer, client: Client) -> None:
    """Embeddings and scores of an input can be set for every call; vectors are scaled to length 1."""
    server.set_embedding("up", [0, 2] + [0] * 6)
    server.set_scores(b"photo", {"cat": 0.9, "dog": 0.1})

    up = client.embed_text("up")
    found = client.classify(b"photo", ["dog", "bird", "cat"])

    assert up.tolist() == [0, 1] + [0] * 6
    assert np.array_equal(server.embedding_of("up"), up)
    assert [one.label for one in found] == ["cat", "dog", "bird"]
    assert [one.score for one in found] == pytest.approx([0.9, 0.1, 0], abs=1e-6)
    with pytest.raises(ValueError, match="8 finite numbers"):
        server.set_embedding("up", [1, 2])
    with pytest.raises(ValueError, match="from 0 to 1"):
        server.set_scores(b"photo", {"cat": 2})


@pytest.mark.parametrize(
    ("key", "reason"), [(None, "KEY_MISSING"), ("as_wrong", "KEY_INVALID"), ("as_a", "")]
)
def test_a_test_can_ask_for_keys(key: str | None, reason: str) -> None:
    """Calls and streams need a key, as with a real server; health does not."""
    with FakeServer(api_keys=["as_a", "as_b"]) as fake, Client(fake.target, api_key=key) as client:
        assert client.is_ready()
        if not reason:
            assert len(list(client.stream([TextItem("a")]))) == 1
            return
        with pytest.raises(alignserve.UnauthenticatedError) as called:
            client.embed_text("a")
        with pytest.raises(alignserve.UnauthenticatedError) as streamed:
            list(client.stream([TextItem("a")]))

    assert (called.value.reason, streamed.value.reason) == (reason, reason)


def test_a_test_can_have_images_checked() -> None:
    """Bytes in none of the formats are refused, and images are accepted."""
    with FakeServer(checks_images=True) as fake, Client(fake.target) as client:
        client.embed_image(b"\x89PNG\r\n\x1a\n and so on")
        with pytest.raises(alignserve.InvalidArgumentError, match="image is not one of JPEG, PNG") as caught:
            client.embed_image(b"GIF89a")

    assert caught.value.reason == "IMAGE_UNREADABLE"


def test_a_held_stream_is_read_as_far_as_the_client_sends(server: FakeServer, client: Client) -> None:
    """A test can see how much a client keeps in flight."""
    client.model_info()
    server.hold()
    results = client.stream([TextItem(str(number)) for number in range(40)], window=8, ordered=True)
    taken: list[int] = []
    reader = threading.Thread(target=lambda: taken.extend(1 for _ in results))
    reader.start()

    server.wait_for_received(1 + 1 + 8)  # the model's limits and the options come first
    sent = sum(call.method == "StreamInfer" for call in server.received)
    server.release()
    reader.join()

    assert sent == 1 + 8
    assert len(taken) == 40


@pytest.mark.parametrize(
    ("order", "ids"),
    [
        (pb.DELIVERY_ORDER_AS_COMPLETED, ["2", "1", "0", "3", "4"]),
        (pb.DELIVERY_ORDER_AS_REQUESTED, ["0", "1", "2", "3", "4"]),
    ],
)
def test_a_test_can_have_items_answered_out_of_order(
    server: FakeServer, order: pb.DeliveryOrder.ValueType, ids: list[str]
) -> None:
    """Clients must match answers by id; a stream that asks for its own order keeps it."""
    server.reverse_answers(3)
    requests = [pb.StreamInferRequest(stream_options=pb.StreamOptions(delivery_order=order))]
    requests += [
        pb.StreamInferRequest(correlation_id=str(number), embed_text=pb.EmbedTextRequest(texts=["a"]))
        for number in range(5)
    ]

    with grpc.insecure_channel(server.target) as channel:
        answers = list(AlignServiceStub(channel).StreamInfer(iter(requests)))

    assert [answer.correlation_id for answer in answers] == ids


def test_clients_match_answers_by_id(server: FakeServer, client: Client) -> None:
    """Each item gets its own embedding, whatever the order of the answers."""
    server.reverse_answers(3)

    for result in client.stream([TextItem(str(number)) for number in range(5)]):
        assert isinstance(result.item, TextItem)
        assert np.array_equal(result.embedding, server.embedding_of(result.item.text))
