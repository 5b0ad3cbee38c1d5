"""Lists longer than a request, and lists with bad items, by both clients against the fake server.

Each behaviour is stated once and run on both: `call` hides which client it is.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alignserve
import grpc
import numpy as np
import pytest
from alignserve import AlignserveError, AsyncClient, Client, RetryPolicy
from alignserve.testing import FakeServer
from alignserve.v1 import align_service_pb2 as pb

Call = Callable[..., Any]

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
INTERNAL = grpc.StatusCode.INTERNAL
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def call_blocking(target: str, method: str, *inputs: Any, client: dict[str, Any], **options: Any) -> Any:
    with Client(target, **client) as made:
        made.model_info()
        return getattr(made, method)(*inputs, **options)


def call_async(target: str, method: str, *inputs: Any, client: dict[str, Any], **options: Any) -> Any:
    async def run() -> Any:
        async with AsyncClient(target, **client) as made:
            await made.model_info()
            return await getattr(made, method)(*inputs, **options)

    return asyncio.run(run())


@pytest.fixture(params=[call_blocking, call_async], ids=["blocking", "asyncio"])
def call(request: pytest.FixtureRequest, server: FakeServer, time: Any) -> Call:
    """Calls a method of a client that knows the limits, with time that only moves in pauses."""

    def run(method: str, *inputs: Any, client: dict[str, Any] | None = None, **options: Any) -> Any:
        defaults = {"_clock": time.clock(), **(client or {})}
        return request.param(server.target, method, *inputs, client=defaults, **options)

    return run


def fail_after_info(server: FakeServer, *failures: tuple[Any, ...], **details: Any) -> None:
    """Fails the first calls after GetModelInfo."""
    respond = server._state.script.next_failure
    asked = iter([None])

    def next_failure(method: str) -> Any:
        return next(asked, None) if method == "GetModelInfo" else respond(method)

    server._state.script.next_failure = next_failure  # type: ignore[method-assign]
    for failure in failures:
        server.fail_next(*failure, **details)


def requests(server: FakeServer) -> list[Any]:
    return [received for received in server.received if received.method != "GetModelInfo"]


def texts(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


@pytest.mark.parametrize("reason", ["WOULD_MISS_DEADLINE", "QUEUE_FULL", "QUOTA_EXCEEDED"])
def test_a_list_waits_for_a_full_server(server: FakeServer, call: Call, time: Any, reason: str) -> None:
    """The client waits as long as the server asks, and embeds every item."""
    fail_after_info(server, *[(EXHAUSTED, reason)] * 3, retry_delay_seconds=7)

    rows = call("embed_text", texts(40))

    assert np.array_equal(rows, np.stack([server.embedding_of(text) for text in texts(40)]))
    assert max(time.sleeps) == 7.0


def test_each_attempt_of_a_list_has_the_whole_timeout(server: FakeServer, call: Call, time: Any) -> None:
    """A request's deadline starts when it is sent, not with the list or its first attempt."""
    fail_after_info(server, *[(EXHAUSTED, "QUEUE_FULL")] * 4, retry_delay_seconds=20)

    call("embed_image", [b"%d" % number for number in range(40)])

    assert sum(time.sleeps) >= 20
    assert all(each.remaining_seconds > 25 for each in requests(server))


def test_a_list_survives_a_restart(server: FakeServer, call: Call) -> None:
    """A list survives an outage that is longer than a call's few attempts."""
    fail_after_info(server, *[(UNAVAILABLE, "MODEL_LOADING")] * 9, retry_delay_seconds=1)

    # One at a time, otherwise it is random how many of the failures count as one.
    rows = call("embed_text", texts(40), client={"max_in_flight": 1})

    assert rows.shape == (40, 8)


def test_a_list_that_is_never_answered_raises_why(server: FakeServer, call: Call, time: Any) -> None:
    """A list fails after ten attempts and a request's timeout without an answer."""
    fail_after_info(server, *[(EXHAUSTED, "QUEUE_FULL")] * 1000, retry_delay_seconds=1)

    with pytest.raises(alignserve.ResourceExhaustedError):
        call("embed_text", texts(40))

    assert 30 <= sum(time.sleeps) <= 60


def test_a_list_has_a_deadline_of_its_own_on_request(server: FakeServer, call: Call, time: Any) -> None:
    """A pause that would outlast the deadline is not started, and results so far are kept."""
    call("embed_text", ["a"])
    fail_after_info(server, *[(EXHAUSTED, "QUEUE_FULL")] * 100, retry_delay_seconds=3)
    time.sleeps.clear()

    with pytest.raises(alignserve.DeadlineExceededError, match="total_timeout_seconds"):
        call("embed_text", texts(40), total_timeout_seconds=10)

    assert sum(time.sleeps) <= 10


def test_a_silent_server_costs_a_list_the_time_given(server: FakeServer) -> None:
    """Requests in flight also end at the deadline of the list."""
    with Client(server.target) as client:
        client.model_info()
        server.hold()

        with pytest.raises(alignserve.DeadlineExceededError):
            client.embed_text(texts(40), total_timeout_seconds=0.1)


def test_bad_images_do_not_affect_others(server: FakeServer, call: Call, tmp_path: Path) -> None:
    """Each result or error is at the position of its image, including that of a missing file."""
    images: list[Any] = [b"%d" % number for number in range(100)]
    images[3], images[50], images[51] = b"bad", tmp_path / "missing.jpg", b"bad"
    server.fail_input(b"bad", message="no image")

    found = call("embed_image", images, on_error="return")

    assert isinstance(found, list)
    failed = {position: each for position, each in enumerate(found) if isinstance(each, AlignserveError)}
    assert {position: each.reason for position, each in failed.items()} == {
        3: "IMAGE_UNREADABLE",
        50: "INPUT_UNREADABLE",
        51: "IMAGE_UNREADABLE",
    }
    assert failed[51].message == "images[51].content: no image"
    assert failed[51].violations[0].field == "images[51].content"
    assert all(
        np.array_equal(found[position], server.embedding_of(images[position]))
        for position in range(100)
        if position not in failed
    )


def test_a_request_is_sent_again_without_its_bad_items(server: FakeServer, call: Call) -> None:
    """Four images with two bad ones take two requests."""
    server.fail_input(b"bad")

    call("embed_image", [b"1", b"bad", b"2", b"bad"], on_error="return")

    assert [len(each.request.images) for each in requests(server)] == [4, 2]


def test_more_bad_items_than_a_status_names_are_all_found(call: Call) -> None:
    """A server names at most sixteen bad items; the next answer names the others."""
    with FakeServer(max_client_batch_size=64) as server, Client(server.target) as client:
        server.fail_input("bad", reason="TEXT_TOO_LONG")

        found = client.embed_text(["bad"] * 60 + ["good"], on_error="return")

    assert [getattr(each, "reason", None) for each in found] == ["TEXT_TOO_LONG"] * 60 + [None]


def test_an_item_on_which_the_model_fails_is_found(server: FakeServer, call: Call) -> None:
    """If the model fails on an item that the server does not name, the others are still embedded."""
    server.fail_input("poison", INTERNAL, "INFERENCE_FAILED")

    found = call("embed_text", ["a", "b", "poison", "c", *texts(20)], on_error="return")

    failed = [position for position, each in enumerate(found) if isinstance(each, AlignserveError)]
    assert failed == [2]


def test_texts_that_have_no_utf8_or_fit_nowhere_are_errors_in_place(call: Call, server: FakeServer) -> None:
    """Errors found by the client look like the server's."""
    server._state.info.max_request_bytes = 2000

    found = call("embed_text", ["good", "\ud800", "x" * 3000, "good"], on_error="return")

    assert [getattr(each, "reason", None) for each in found] == [
        None,
        "INPUT_UNREADABLE",
        "TEXT_TOO_LONG",
        None,
    ]


def test_classifications_have_errors_in_place(server: FakeServer, call: Call) -> None:
    """An image that fails does not affect the labels of the others."""
    server.fail_input(b"bad")

    good, bad = call("classify", [b"good", b"bad"], ["cat", "dog"], on_error="return")

    assert {one.label for one in good} == {"cat", "dog"}
    assert isinstance(bad, alignserve.InvalidArgumentError)


def test_an_error_of_the_whole_call_is_returned_for_each_item(server: FakeServer, call: Call) -> None:
    """With errors returned, an error of the whole call is returned for every item."""
    found = call("classify", [b"1", b"2"], ["cat", " "], on_error="return")

    assert [each.reason for each in found] == ["LABELS_INVALID"] * 2


def test_results_so_far_survive_a_server_that_goes_away(server: FakeServer, call: Call) -> None:
    """With errors returned, unfinished items have the reason in their place."""
    server.fail_input("text 30", UNAVAILABLE, "MODEL_STALLED")

    found = call("embed_text", texts(40), on_error="return", client={"max_in_flight": 1})

    assert [getattr(each, "reason", "") for each in found] == [""] * 28 + ["MODEL_STALLED"] * 12


def test_one_input_gives_its_result_or_error(server: FakeServer, call: Call) -> None:
    """A single input gives a single value."""
    server.fail_input(b"bad")

    assert isinstance(call("embed_image", b"bad", on_error="return"), alignserve.InvalidArgumentError)
    assert np.array_equal(call("embed_image", b"a", on_error="return"), server.embedding_of(b"a"))
    assert isinstance(call("embed_text", " ", on_error="return"), alignserve.InvalidArgumentError)
    assert isinstance(call("classify", b"bad", ["cat"], on_error="return"), AlignserveError)


def test_no_inputs_are_no_results(call: Call) -> None:
    """An empty list is not an error, with errors raised or returned."""
    assert call("embed_image", [], on_error="return") == []
    assert call("classify", [], ["cat"], on_error="return") == []
    assert call("embed_text_detailed", [], on_error="return").embeddings.shape == (0, 8)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_details_have_a_row_for_every_item_and_errors_by_position(
    server: FakeServer, call: Call, dtype: str
) -> None:
    """The array keeps its shape: the row of an item that failed is NaN."""
    server.fail_input("bad", reason="TEXT_TOO_LONG")

    found = call("embed_text_detailed", ["a", "bad", "b c"], dtype=dtype, on_error="return")

    assert found.embeddings.shape == (3, 8)
    assert found.embeddings.dtype == dtype
    assert np.isnan(found.embeddings).all(axis=1).tolist() == [False, True, False]
    assert {position: each.reason for position, each in found.errors.items()} == {1: "TEXT_TOO_LONG"}
    assert [each.token_count for each in found.tokenizations] == [3, 0, 4]


def test_all_items_may_fail(server: FakeServer, call: Call) -> None:
    """The array has the right width even if every item fails."""
    server.fail_input(b"bad")

    found = call("embed_image_detailed", [b"bad"] * 9, on_error="return")

    assert found.embeddings.shape == (9, 8)
    assert sorted(found.errors) == list(range(9))


def test_equal_items_each_have_their_result(server: FakeServer, call: Call) -> None:
    """Equal items are distinguished by position."""
    server.fail_input("bad")

    found = call("embed_text", ["a", "bad", "a", "bad", "a"], on_error="return")

    assert [isinstance(each, AlignserveError) for each in found] == [False, True, False, True, False]


def test_an_error_has_the_results_so_far(server: FakeServer, call: Call) -> None:
    """The error has the results so far, so that the caller can continue with the rest."""
    server.fail_input("text 30")

    with pytest.raises(alignserve.InvalidArgumentError) as caught:
        call("embed_text", texts(40), client={"max_in_flight": 1})

    done = caught.value.completed
    assert sorted(done) == list(range(28))
    assert np.array_equal(done[5], server.embedding_of("text 5"))


def test_a_missing_file_error_has_the_results_so_far(server: FakeServer, call: Call, tmp_path: Path) -> None:
    """Other exceptions have the results so far, too."""
    images = [b"%d" % number for number in range(20)]

    with pytest.raises(FileNotFoundError) as caught:
        call("classify", [*images, tmp_path / "missing.jpg"], ["cat"], client={"max_in_flight": 1})

    assert sorted(caught.value.completed) == list(range(20))  # type: ignore[attr-defined]


def test_a_call_that_is_one_request_has_done_nothing_when_it_fails(server: FakeServer, call: Call) -> None:
    """A request is atomic."""
    server.fail_input("bad")

    with pytest.raises(alignserve.InvalidArgumentError) as caught:
        call("embed_text", ["a", "bad"])

    assert caught.value.completed == {}


def test_progress_is_reported_up_to_the_last_item(server: FakeServer, call: Call) -> None:
    """Progress never decreases, and counts failed items."""
    server.fail_input("text 7")
    told: list[tuple[int, int]] = []

    call(
        "embed_text", texts(40), on_error="return", on_progress=lambda done, total: told.append((done, total))
    )

    assert told == sorted(set(told))
    assert told[-1] == (40, 40)
    assert len(told) > 2


@pytest.mark.parametrize("inputs", ["a", ["a"], texts(4)], ids=["one", "list of one", "one request"])
def test_progress_of_one_request_is_reported_once(call: Call, inputs: Any) -> None:
    """The end of a single input is reported, too."""
    told: list[tuple[int, int]] = []
    count = 1 if isinstance(inputs, str) else len(inputs)

    call("embed_text", inputs, on_progress=lambda done, total: told.append((done, total)))

    assert told == [(count, count)]


def test_an_exception_of_the_progress_callback_ends_the_call(server: FakeServer, call: Call) -> None:
    """An exception from the callback is raised, with the results so far."""

    def leave(done: int, total: int) -> None:
        raise LookupError(f"{done} of {total}")

    with pytest.raises(LookupError) as caught:
        call("embed_text", texts(400), on_progress=leave)

    assert 0 < len(caught.value.completed) < 400  # type: ignore[attr-defined]


def test_an_unknown_way_with_errors_is_refused(server: FakeServer, call: Call) -> None:
    """An unknown value is refused before anything is sent, with the valid ones."""
    with pytest.raises(ValueError, match="use raise or return"):
        call("embed_text", texts(2), on_error="ignore")

    assert requests(server) == []


def test_returned_errors_do_not_keep_the_inputs(server: FakeServer, call: Call, tmp_path: Path) -> None:
    """Returned errors have no traceback, whose frames would keep the images in memory."""
    server.fail_input(b"bad")

    found = call("embed_image", [b"bad", tmp_path / "missing.jpg", b"good"], on_error="return")

    errors = [each for each in found if isinstance(each, AlignserveError)]
    causes = [each.__cause__ for each in errors if each.__cause__]
    assert len(errors) == 2
    assert [each.__traceback__ for each in (*errors, *causes)] == [None] * (len(errors) + len(causes))


def test_without_repeats_a_refusal_of_a_list_is_final(server: FakeServer, call: Call, time: Any) -> None:
    """A policy with one attempt never waits."""
    fail_after_info(server, (EXHAUSTED, "QUEUE_FULL"), retry_delay_seconds=1)

    with pytest.raises(alignserve.ResourceExhaustedError):
        call("embed_text", texts(40), client={"retry": RetryPolicy(max_attempts=1)})

    assert time.sleeps == []


def test_a_server_with_smaller_limits_may_take_the_others_place_in_mid_list(
    server: FakeServer, call: Call
) -> None:
    """Requests that have become too large are split again, and other results are kept."""

    def shrink(done: int, total: int) -> None:
        server._state.info.max_client_batch_size = 2

    rows = call("embed_text", texts(60), on_progress=shrink)

    assert np.array_equal(rows, np.stack([server.embedding_of(text) for text in texts(60)]))
    assert {len(each.request.texts) for each in requests(server)[-10:]} == {2}


@contextmanager
def strange_server(*responses: bytes) -> Iterator[str]:
    """Runs a server with four texts per request and the given responses; yields its address."""
    info = pb.GetModelInfoResponse(max_client_batch_size=4, max_request_bytes=1 << 20).SerializeToString()
    left = iter(responses)
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "GetModelInfo": grpc.unary_unary_rpc_method_handler(lambda _, __: info),
        "EmbedText": grpc.unary_unary_rpc_method_handler(lambda _, __: next(left)),
    }
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("alignserve.v1.AlignService", handlers)]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def embeddings(*sizes: int) -> bytes:
    vectors = [pb.Embedding(packed_float32=bytes(4 * size)) for size in sizes]
    return pb.EmbedTextResponse(embeddings=vectors).SerializeToString()


@pytest.mark.parametrize("run", [call_blocking, call_async])
@pytest.mark.parametrize(
    "strange",
    [
        b"no message",
        b"",
        embeddings(8, 8, 8),
        embeddings(8, 8, 8, 8, 8),
        embeddings(8, 8, 7, 9),
        embeddings(0, 0, 0, 0),
        embeddings(6, 6, 6, 6),
    ],
    ids=["no message", "nothing", "too few", "too many", "of several sizes", "empty", "of another model"],
)
def test_an_inconsistent_answer_keeps_the_results_so_far(run: Call, strange: bytes) -> None:
    """An inconsistent answer, such as from another model, is an error, and results are not mixed."""
    options = {"client": {"max_in_flight": 1}}
    fitting = embeddings(8, 8, 8, 8)
    with strange_server(fitting, strange) as target, pytest.raises(alignserve.InternalError) as caught:
        run(target, "embed_text", texts(12), **options)
    with strange_server(fitting, strange) as target:
        results = run(target, "embed_text", texts(12), on_error="return", **options)

    assert sorted(caught.value.completed) == [0, 1, 2, 3]
    assert [isinstance(each, AlignserveError) for each in results] == [False] * 4 + [True] * 8


def test_closing_during_a_list_keeps_the_results_so_far(server: FakeServer) -> None:
    """A list that waits in another thread fails because the client was closed, and has its results so far."""
    client = Client(server.target, max_in_flight=1)
    caught: list[alignserve.CallCancelledError] = []

    def embed() -> None:
        with pytest.raises(alignserve.CallCancelledError) as error:
            client.embed_text(texts(40), on_progress=lambda done, _: server.hold() if done == 8 else None)
        caught.append(error.value)

    waiting = threading.Thread(target=embed)
    waiting.start()
    server.wait_for_received(4)  # GetModelInfo, two requests, and one that is held
    client.close()
    waiting.join(10)

    assert sorted(caught[0].completed) == list(range(8))


# A program of its own: a process that had run many other tests crashed here.
INTERRUPTED = """
import signal, sys, threading, traceback
from alignserve import Client

main = threading.main_thread().ident

def is_waiting():
    return "_wait" in [frame.f_code.co_name for frame, _ in traceback.walk_stack(sys._current_frames()[main])]

def interrupt():
    sys.stdin.readline()
    while not is_waiting():  # gRPC's channel does not survive an exception inside it
        pass
    signal.pthread_kill(main, signal.SIGINT)

def hold(done, _):
    if done == 8:
        print("eight", flush=True)
        sys.stdin.readline()
        threading.Thread(target=interrupt).start()

with Client(sys.argv[1], max_in_flight=1) as client:
    try:
        client.embed_text([f"text {number}" for number in range(40)], on_progress=hold)
    except KeyboardInterrupt as error:
        print(sorted(error.completed))
"""


def test_ctrl_c_keeps_the_results_so_far(server: FakeServer) -> None:
    """Ctrl-C keeps the results so far, such as hours of work in a notebook."""
    command = [sys.executable, "-c", INTERRUPTED, server.target]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "eight\n"
        server.hold()
        process.stdin.write("held\n")
        process.stdin.flush()
        server.wait_for_received(4)
        process.stdin.write("interrupt\n")
        process.stdin.flush()

        assert process.stdout.readline() == f"{list(range(8))}\n"

    assert process.returncode == 0


async def test_a_cancelled_list_sends_no_more(server: FakeServer, async_client: AsyncClient) -> None:
    """Cancelling the task also cancels its requests."""
    await async_client.model_info()
    server.hold()
    task = asyncio.create_task(async_client.embed_text(texts(40), on_error="return"))
    await asyncio.to_thread(server.wait_for_received, 5)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(requests(server)) == 4
