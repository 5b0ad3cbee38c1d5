"""Calls of the blocking client, against the fake server over real gRPC."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import alignserve
import grpc
import numpy as np
import pytest
from alignserve import AsyncClient, Client, RetryPolicy, TextItem
from alignserve.testing import FakeServer

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


def methods(server: FakeServer) -> list[str]:
    return [call.method for call in server.received]


def test_one_image_gives_one_vector(server: FakeServer, client: Client, photo: Path) -> None:
    """The vector of a file is that of its bytes, float32 and of length 1."""
    vector = client.embed_image(photo)

    assert vector.dtype == np.float32
    assert np.array_equal(vector, server.embedding_of(photo.read_bytes()))


def test_a_list_gives_rows_in_its_order(server: FakeServer, client: Client) -> None:
    """A list of one text gives one row; a single text gives a vector."""
    assert client.embed_text("a").shape == (8,)
    assert client.embed_text(["a"]).shape == (1, 8)
    assert np.array_equal(client.embed_text(["b", "a"])[1], server.embedding_of("a"))


def test_vectors_can_be_written_to(client: Client) -> None:
    """Returned arrays are writable copies."""
    rows = client.embed_text(["a", "b"])

    rows *= 2

    assert np.allclose(np.linalg.norm(rows, axis=1), 2)


def test_half_precision_and_raw_length_on_request(server: FakeServer, client: Client) -> None:
    """`dtype` and `normalize` reach the server and shape the result."""
    vector = client.embed_text("a", dtype="float16", normalize=False)

    assert vector.dtype == np.float16
    assert np.allclose(vector, 3 * server.embedding_of("a"), atol=1e-2)


def test_no_inputs_give_no_rows(client: Client) -> None:
    """An empty list is not an error, and its array has the right width."""
    assert client.embed_image([]).shape == (0, 8)
    assert client.embed_text([], dtype="float16").dtype == np.float16
    assert client.classify([], ["cat"]) == []


def test_long_lists_are_split_and_joined_in_order(server: FakeServer, client: Client) -> None:
    """Ten texts at four per request make three requests and one array; the limits are requested once."""
    texts = [str(number) for number in range(10)]

    rows = client.embed_text(texts)
    client.embed_text(texts)

    assert np.array_equal(rows, np.stack([server.embedding_of(text) for text in texts]))
    assert methods(server).count("EmbedText") == 6
    assert methods(server).count("GetModelInfo") == 1


def test_a_missing_text_is_refused_with_its_position(server: FakeServer, client: Client) -> None:
    """A missing value in a column of texts is found before any of them is sent."""
    with pytest.raises(TypeError, match=r"texts\[1\] is float; give str"):
        client.embed_text(["a", float("nan")])  # type: ignore[list-item]

    assert "EmbedText" not in methods(server)


def test_open_files_are_images(server: FakeServer, client: Client, photo: Path) -> None:
    """A file opened in binary mode gives the vector of its bytes."""
    with photo.open("rb") as file:
        vector = client.embed_image(file)

    assert np.array_equal(vector, server.embedding_of(photo.read_bytes()))


def test_at_most_max_in_flight_requests_wait_at_once(server: FakeServer) -> None:
    """A list of any length keeps a bounded number of requests in flight."""
    read: list[int] = []

    def images() -> Any:
        for number in range(100):
            read.append(number)
            yield b"%d" % number

    with Client(server.target, max_in_flight=2) as client:
        rows = client.embed_image(images())

    assert rows.shape == (100, 8)
    assert len(read) == 100


def test_details_come_with_the_embeddings(client: Client) -> None:
    """Detailed calls return token counts and timings; one text gives one row."""
    found = client.embed_text_detailed("word " * 100, truncate=True)

    assert found.embeddings.shape == (1, 8)
    assert found.tokenizations == (alignserve.Tokenization(64, True),)
    assert found.stats[0].total_seconds == pytest.approx(0.001)


def test_each_request_of_a_split_list_has_its_stats(client: Client) -> None:
    """A list of two requests has two stats."""
    found = client.embed_image_detailed([b"1", b"2", b"3", b"4", b"5"])

    assert [stats.batch_size for stats in found.stats] == [4, 1]


def test_classify_returns_labels_best_first(client: Client) -> None:
    """Scores are in descending order and add up to 1 over all labels."""
    found = client.classify(b"image", ["cat", "dog", "cup"])

    scores = [one.score for one in found]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1.0)
    assert {one.label_index for one in found} == {0, 1, 2}


def test_classify_of_a_list_returns_a_list_for_each_image(server: FakeServer, client: Client) -> None:
    """Templates and `top_k` reach the server, and images keep their order over several requests."""
    found = client.classify(
        [b"1", b"2", b"3", b"4", b"5"],
        ["cat", "dog"],
        prompt_templates=["a photo of a {label}"],
        top_k=1,
    )

    assert [len(one) for one in found] == [1] * 5
    assert server.received[-1].request.prompt_templates == ["a photo of a {label}"]


def test_model_info_names_model_and_limits(client: Client) -> None:
    """`model_info` returns the model and its limits as a plain value."""
    info = client.model_info()

    assert (info.model_id, info.embedding_dimension, info.max_client_batch_size) == ("fake", 8, 4)
    assert info.image_formats == ("JPEG", "PNG")


def test_metadata_goes_with_every_call(server: FakeServer) -> None:
    """The client's metadata is sent with every call."""
    with Client(server.target, metadata=[("authorization", "Bearer k")]) as client:
        client.embed_text("a")

    assert server.received[0].metadata["authorization"] == "Bearer k"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], 16 << 20),
        ([("grpc.max_receive_message_length", 1 << 20)], 1 << 20),
        ([("grpc.max_receive_message_length", -1)], (1 << 31) - 1),
        ([("grpc.max_receive_message_length", 1), ("grpc.max_receive_message_length", 1 << 26)], 1 << 26),
    ],
    ids=["default", "less", "unlimited", "the last one"],
)
def test_the_server_is_told_how_large_responses_may_be(
    server: FakeServer, options: list[tuple[str, Any]], told: int
) -> None:
    """Every call and stream tells the server the maximum response size of the channel."""
    with Client(server.target, options=options) as client:
        client.embed_image_detailed([b"a", b"b"])
        list(client.stream([TextItem("b")]))

    sent = {call.metadata["alignserve-max-response-bytes"] for call in server.received}
    assert sent == {str(told)}


@pytest.mark.parametrize("priority", [None, "interactive", "bulk"])
def test_a_priority_goes_with_every_call(server: FakeServer, priority: Any) -> None:
    """Bulk priority is sent as metadata; by default a call is interactive."""
    given = {"priority": priority} if priority else {}
    with Client(server.target, **given) as client:
        client.embed_text("a")
        list(client.stream([TextItem("b")]))

    sent = {call.metadata.get("alignserve-priority", "interactive") for call in server.received}
    assert sent == {priority or "interactive"}


def test_an_unknown_priority_is_refused(server: FakeServer) -> None:
    """An unknown value is refused before anything is sent, with the valid ones."""
    with pytest.raises(ValueError, match="interactive or bulk"):
        Client(server.target, priority=cast("Any", "urgent"))


def test_an_api_key_goes_with_every_call_and_nowhere_else(server: FakeServer) -> None:
    """The key is sent as the server expects, and no repr shows it."""
    with Client(server.target, api_key="as_search_secret") as client:
        client.embed_text("a")

        assert server.received[0].metadata["authorization"] == "Bearer as_search_secret"
        assert "secret" not in repr(client) + repr(client._defaults)


def test_an_api_key_may_end_with_the_line_of_its_file(server: FakeServer) -> None:
    """A key with a trailing line break, as `keys add >file` writes it, works."""
    with Client(server.target, api_key="as_search_secret\n") as client:
        client.embed_text("a")

    assert server.received[0].metadata["authorization"] == "Bearer as_search_secret"


@pytest.mark.parametrize("client_class", [Client, AsyncClient])
@pytest.mark.parametrize(
    "defaults",
    [
        {"api_key": "as_\u00fc_secret"},
        {"api_key": " \n"},
        {"metadata": [("authorization", "Bearer secret\n")]},
    ],
    ids=["no ASCII", "empty", "line break"],
)
async def test_invalid_metadata_is_refused_at_once(client_class, defaults) -> None:
    """Both clients refuse invalid metadata without showing the secret."""
    with pytest.raises(ValueError, match=r"API key|metadata") as error:
        client_class("127.0.0.1:1", **defaults)

    assert "secret" not in str(error.value)


def test_keys_of_metadata_may_be_written_as_in_http(server: FakeServer) -> None:
    """Metadata keys are lowered, as gRPC requires."""
    with Client(server.target, metadata=[("Authorization", "Bearer k")]) as client:
        client.embed_text("a")

    assert server.received[0].metadata["authorization"] == "Bearer k"


def test_a_client_that_may_send_nothing_is_refused() -> None:
    """A client that could send nothing is refused by its constructor."""
    with pytest.raises(ValueError, match="max_in_flight is 0"):
        Client(max_in_flight=0)


@pytest.mark.parametrize("forever", [None, float("inf")])
def test_a_client_without_a_deadline_sends_none(server: FakeServer, forever: float | None) -> None:
    """`None` and infinity mean no deadline, for a client and for one call."""
    with Client(server.target, timeout_seconds=forever) as client:
        client.embed_text("a")
        client.embed_text(["a"] * 5)
        client.embed_text("a", timeout_seconds=float("inf"))

    assert [call.remaining_seconds for call in server.received] == [None] * 5


@pytest.mark.parametrize("knows_limits", [True, False])
def test_an_image_that_fits_into_no_request_is_named(knows_limits: bool) -> None:
    """The error is the same whether the client or the server detects it, and says what to do."""
    pixels = np.random.default_rng(0).integers(0, 256, (50, 50), np.uint8)
    with FakeServer(max_request_bytes=2000) as small, Client(small.target) as client:
        if knows_limits:
            client.model_info()

        with pytest.raises(alignserve.InvalidArgumentError, match="too large even as PNG") as caught:
            client.embed_image(pixels)

        assert caught.value.reason == "IMAGE_TOO_LARGE"
        assert methods(small) == ["GetModelInfo"]


@pytest.mark.parametrize("texts", ["x" * 3000, ["a", "x" * 3000]], ids=["one", "list"])
def test_a_text_that_fits_into_no_request_is_named(texts: str | list[str]) -> None:
    """The error names the text at fault, in a list or by itself."""
    with (
        FakeServer(max_request_bytes=2000) as small,
        Client(small.target) as client,
        pytest.raises(alignserve.InvalidArgumentError) as caught,
    ):
        client.embed_text(texts)

    assert caught.value.reason == "TEXT_TOO_LONG"
    assert caught.value.violations[0].field == ("texts[0]" if isinstance(texts, str) else "texts[1]")


def test_a_server_with_smaller_limits_may_take_the_others_place(server: FakeServer, client: Client) -> None:
    """If a server with smaller limits replaces the first, a list is split again."""
    client.model_info()
    server._state.info.max_client_batch_size = 2

    rows = client.embed_text(["a", "b", "c", "d"])

    assert np.array_equal(rows, np.stack([server.embedding_of(text) for text in "abcd"]))


def test_invalid_input_names_the_field_in_the_whole_list(server: FakeServer, client: Client) -> None:
    """Positions in errors are those of the caller's list, not of the request."""
    server.fail_input("bad", reason="TEXT_TOO_LONG", message="too long")

    with pytest.raises(alignserve.InvalidArgumentError) as caught:
        client.embed_text(["ok"] * 9 + ["bad"])

    assert caught.value.reason == "TEXT_TOO_LONG"
    assert caught.value.violations[0].field == "texts[9]"
    assert caught.value.message == "texts[9]: too long"


def test_a_missing_file_is_the_usual_exception(server: FakeServer, client: Client) -> None:
    """A missing file raises FileNotFoundError, not an error of the server."""
    with pytest.raises(FileNotFoundError):
        client.embed_image("nowhere.jpg")

    assert server.received == []


def test_a_full_server_is_asked_again_after_its_delay(server: FakeServer, client: Client, time: Any) -> None:
    """The client waits exactly as long as RetryInfo says, every time, and the call succeeds."""
    server.fail_next(EXHAUSTED, "QUEUE_FULL", retry_delay_seconds=7, times=2)

    vector = client.embed_text("a")

    assert np.array_equal(vector, server.embedding_of("a"))
    assert time.sleeps == [7.0, 7.0]


def test_a_full_server_is_asked_as_often_as_the_deadline_allows(
    server: FakeServer, client: Client, time: Any
) -> None:
    """With short delays the pauses still grow, and end before the deadline."""
    server.fail_next(EXHAUSTED, "QUEUE_FULL", retry_delay_seconds=0.05, times=1000)

    with pytest.raises(alignserve.ResourceExhaustedError):
        client.embed_text("a", timeout_seconds=20)

    assert time.sleeps == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])


def test_without_retries_a_full_server_is_the_answer(server: FakeServer, time: Any) -> None:
    """A policy with one attempt never waits."""
    server.fail_next(EXHAUSTED, "QUEUE_FULL", retry_delay_seconds=0.05)

    with (
        Client(server.target, retry=RetryPolicy(max_attempts=1), _clock=time.clock()) as client,
        pytest.raises(alignserve.ResourceExhaustedError),
    ):
        client.embed_text("a")

    assert time.sleeps == []


def test_a_delay_that_outlasts_the_deadline_is_not_begun(
    server: FakeServer, client: Client, time: Any
) -> None:
    """A call with a 10-second deadline that is told to wait 7 seconds, twice, waits once."""
    server.fail_next(EXHAUSTED, "QUEUE_FULL", retry_delay_seconds=7, times=2)

    with pytest.raises(alignserve.ResourceExhaustedError) as caught:
        client.embed_text("a", timeout_seconds=10)

    assert caught.value.retry_delay_seconds == 7.0
    assert time.sleeps == [7.0]


def test_a_refusal_without_a_delay_is_final(server: FakeServer, client: Client, time: Any) -> None:
    """A refusal without a delay is not retried: with unchanged limits the request cannot be split further."""
    client.model_info()
    server.fail_next(EXHAUSTED, "")

    with pytest.raises(alignserve.ResourceExhaustedError):
        client.embed_text("a")

    assert time.sleeps == []
    assert methods(server).count("EmbedText") == 1


def test_an_unavailable_server_is_asked_again_with_a_large_request(
    server: FakeServer, client: Client
) -> None:
    """gRPC itself retries after the server's pushback, even if the request is far over 256 KiB."""
    server.fail_next(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", retry_delay_seconds=0.01, times=2)

    vector = client.embed_image(bytes(2 << 20))

    assert vector.shape == (8,)
    assert methods(server) == ["EmbedImage"] * 3


def test_without_retries_the_first_failure_is_the_answer(server: FakeServer) -> None:
    """A policy with one attempt never retries."""
    server.fail_next(grpc.StatusCode.UNAVAILABLE, "MODEL_LOADING", retry_delay_seconds=0.01)

    with (
        Client(server.target, retry=RetryPolicy(max_attempts=1)) as client,
        pytest.raises(alignserve.UnavailableError) as caught,
    ):
        client.embed_text("a")

    assert caught.value.reason == "MODEL_LOADING"
    assert methods(server) == ["EmbedText"]


def test_an_internal_error_carries_its_id(server: FakeServer, client: Client) -> None:
    """The caller gets the id of the error in the server's log."""
    server.fail_next(grpc.StatusCode.INTERNAL, "INFERENCE_FAILED", error_id="4f2a")

    with pytest.raises(alignserve.InternalError) as caught:
        client.embed_text("a")

    assert caught.value.error_id == "4f2a"


def test_a_call_without_an_answer_ends_at_its_deadline(server: FakeServer, client: Client) -> None:
    """A server that hangs costs the caller no more than the timeout."""
    server.hold()

    with pytest.raises(alignserve.DeadlineExceededError):
        client.embed_text("a", timeout_seconds=0.05)


def test_readiness_follows_the_server(server: FakeServer, client: Client) -> None:
    """A server that is loading its model is reachable but not ready."""
    server.set_ready(False)
    before = client.is_ready()
    server.set_ready(True)

    assert (before, client.is_ready()) == (False, True)


def test_waiting_for_readiness_ends_when_the_server_is_ready(
    server: FakeServer, client: Client, time: Any
) -> None:
    """The wait checks at intervals until the server is ready."""
    server.set_ready(False)
    wait = time.wait

    def wait_and_see(closed: threading.Event, seconds: float) -> bool:
        server.set_ready(len(time.sleeps) == 2)
        return bool(wait(closed, seconds))

    time.wait = wait_and_see
    with Client(server.target, _clock=time.clock()) as waiting:
        waiting.wait_until_ready(30)

    assert len(time.sleeps) == 3


def test_waiting_for_readiness_times_out(server: FakeServer, client: Client) -> None:
    """The wait lasts exactly as long as its timeout, by the clock."""
    server.set_ready(False)

    with pytest.raises(alignserve.DeadlineExceededError, match=r"no ready server at .* within 5 s"):
        client.wait_until_ready(5)


def test_a_missing_server_is_unavailable() -> None:
    """An address without a server fails at once, and is not ready."""
    with FakeServer() as gone:
        target = gone.target

    with Client(target, retry=RetryPolicy(max_attempts=1)) as client:
        assert not client.is_ready()
        with pytest.raises(alignserve.UnavailableError):
            client.embed_text("a")


def test_unknown_tokens_are_counted(client: Client) -> None:
    """Each text has its own count, even after truncation."""
    found = client.embed_text_detailed(["a [UNK] b", "a b", "[UNK] " * 100], truncate=True)

    assert [one.unknown_token_count for one in found.tokenizations] == [1, 0, 62]
