"""Streams of both clients, against the fake server over real gRPC.

Each behaviour is stated once and run on both: `collect` hides which client it is.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent import futures
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import alignserve
import grpc
import numpy as np
import pytest
from alignserve import AsyncClient, ClassifyItem, Client, ImageItem, Item, RetryPolicy, StreamResult, TextItem
from alignserve._in_flight import InFlightItems
from alignserve._stream import Stream
from alignserve.testing import FakeServer

Collect = Callable[..., list[StreamResult]]


def collect_blocking(
    target: str, items: Iterable[Item], *, time: Any, retry: RetryPolicy | None = None, **options: Any
) -> list[StreamResult]:
    with Client(target, retry=retry, _clock=time.clock()) as client:
        return list(client.stream(items, **options))


def collect_async(
    target: str, items: Iterable[Item], *, time: Any, retry: RetryPolicy | None = None, **options: Any
) -> list[StreamResult]:
    async def run() -> list[StreamResult]:
        async with AsyncClient(target, retry=retry, _clock=time.clock()) as client:
            return [result async for result in client.stream(items, **options)]

    return asyncio.run(run())


@pytest.fixture(params=[collect_blocking, collect_async], ids=["blocking", "asyncio"])
def collect(request: pytest.FixtureRequest, server: FakeServer, time: Any) -> Collect:
    def run(items: Iterable[Item], **options: Any) -> list[StreamResult]:
        return list(request.param(server.target, items, time=time, **options))

    return run


def texts(count: int) -> list[Item]:
    return [TextItem(str(number), id=number) for number in range(count)]


def stream_messages(server: FakeServer) -> list[Any]:
    return [call.request for call in server.received if call.method == "StreamInfer"]


def test_every_kind_of_item_is_answered_with_its_value(
    server: FakeServer, collect: Collect, photo: Path
) -> None:
    """Images and texts give vectors, classifications give labels, each with its item."""
    items = [ImageItem(photo), TextItem("a b", dtype="float16"), ClassifyItem(b"image", ["cat", "dog"])]

    image, text, classified = collect(items, ordered=True)

    assert np.array_equal(image.embedding, server.embedding_of(photo.read_bytes()))
    assert text.embedding.dtype == np.float16
    assert text.tokenization == alignserve.Tokenization(4, False)
    assert [one.label_index for one in classified.classifications]
    assert [image.item, text.item, classified.item] == items


def test_no_items_need_no_stream(server: FakeServer, collect: Collect) -> None:
    """An empty iterable gives no results, and opens no stream."""
    assert collect([]) == []
    assert stream_messages(server) == []


def test_ids_are_the_callers_and_need_not_be_unique(collect: Collect) -> None:
    """Any object is an id, and it stays in the client."""
    key = object()

    results = collect([TextItem("a", id=key), TextItem("b", id=key), TextItem("c")])

    assert [result.id for result in results].count(key) == 2


@pytest.mark.parametrize("ordered", [True, False])
def test_the_order_asked_for_is_in_the_first_message(
    server: FakeServer, collect: Collect, ordered: bool
) -> None:
    """Stream options are sent once, before any item."""
    results = collect(texts(100), ordered=ordered)

    orders = [message.stream_options.delivery_order for message in stream_messages(server)]
    assert orders == [2 if ordered else 1] + [0] * 100
    assert sorted(result.id for result in results) == list(range(100))


def test_failed_items_do_not_affect_others(server: FakeServer, collect: Collect, photo: Path) -> None:
    """A missing file, a refused one and a good one give three results, in order."""
    server.fail_input(b"broken", reason="IMAGE_UNREADABLE", message="no image")

    missing, refused, good = collect(
        [ImageItem("nowhere.jpg"), ImageItem(b"broken"), ImageItem(photo)], ordered=True
    )

    assert isinstance(missing.error, alignserve.InvalidArgumentError)
    assert (missing.error.reason, refused.error.reason if refused.error else "") == (
        "INPUT_UNREADABLE",
        "IMAGE_UNREADABLE",
    )
    assert good.error is None
    with pytest.raises(alignserve.InvalidArgumentError, match="no image"):
        refused.result()


def test_more_unreadable_files_than_the_window_pass_through(collect: Collect) -> None:
    """Items that fail in the client free their place too."""
    results = collect([ImageItem(f"nowhere{number}.jpg") for number in range(20)], window=3)

    assert len(results) == 20


def test_an_item_larger_than_a_request_fails_by_itself(time: Any) -> None:
    """An item that is too large, and would end the stream, is not sent."""
    with FakeServer(max_request_bytes=1000) as small:
        results = collect_blocking(
            small.target, [ImageItem(bytes(2000)), ImageItem(b"x")], time=time, ordered=True
        )

    assert [result.error.reason if result.error else None for result in results] == ["IMAGE_TOO_LARGE", None]


def test_broken_streams_are_reopened_without_loss_or_repeat(
    server: FakeServer, collect: Collect, time: Any
) -> None:
    """However often the server ends the stream, each item is answered once, and in order."""
    for after in (5, 0, 1, 0, 30):
        server.break_stream(after)

    results = collect(texts(100), ordered=True, window=8)

    assert [result.id for result in results] == list(range(100))
    assert all(np.array_equal(r.embedding, server.embedding_of(str(r.id))) for r in results)
    assert len(time.sleeps) >= 5  # once per break


def test_a_stream_that_was_reset_is_reopened(server: FakeServer, collect: Collect) -> None:
    """A reset by a proxy whose server died, which gRPC reports as INTERNAL, is a broken connection."""
    server.break_stream(5, grpc.StatusCode.INTERNAL, reason="")

    results = collect(texts(10), ordered=True)

    assert [result.id for result in results] == list(range(10))


@pytest.mark.parametrize(
    ("code", "reason"), [(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"), (grpc.StatusCode.INTERNAL, "")]
)
def test_a_stream_that_stays_broken_gives_up(
    server: FakeServer, collect: Collect, time: Any, code: grpc.StatusCode, reason: str
) -> None:
    """After the allowed attempts without an answer, the error is raised, and no result is lost."""
    for after in (2, 0, 0):
        server.break_stream(after, code, reason)
    seen: list[StreamResult] = []

    with pytest.raises(alignserve.UnavailableError):
        seen.extend(collect(texts(10), retry=RetryPolicy(max_stream_attempts=3, jitter=0)))

    assert time.sleeps == pytest.approx([0.1, 0.2])


def test_an_item_that_the_server_cannot_take_now_is_sent_again(
    server: FakeServer, collect: Collect, time: Any
) -> None:
    """UNAVAILABLE for one item, as from a server that is loading, is retried instead of yielded."""
    unavailable = grpc.StatusCode.UNAVAILABLE
    server.fail_input("3", unavailable, "MODEL_LOADING", message="loading", times=2)

    results = collect(texts(10))

    assert sorted(result.id for result in results) == list(range(10))
    assert all(result.error is None for result in results)
    assert len(time.sleeps) == 2


@pytest.mark.parametrize("code", [grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INTERNAL])
def test_an_error_of_another_kind_ends_the_stream(
    server: FakeServer, client: Client, time: Any, code: grpc.StatusCode
) -> None:
    """Errors that reconnecting cannot fix, such as invalid credentials, are raised at once."""
    server.break_stream(0, code, "REASON")

    with pytest.raises(alignserve.AlignserveError, match="REASON"):
        list(client.stream(texts(1)))

    assert time.sleeps == []


@pytest.mark.parametrize("attempt", range(20))
def test_a_stream_that_is_refused_when_it_is_reopened_tells_the_reason(
    server: FakeServer, collect: Collect, attempt: int
) -> None:
    """The refusal arrives, although many items wait to be sent."""
    server.break_stream(5)
    server.break_stream(0, grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING", times=9)

    with pytest.raises(alignserve.PermissionDeniedError, match="SCOPE_MISSING"):
        collect(texts(500), window=200)


def test_a_refused_client_does_not_try_to_stream(server: FakeServer, collect: Collect, time: Any) -> None:
    """A stream requests the limits first, so that missing permissions are reported at once."""
    server.fail_next(grpc.StatusCode.PERMISSION_DENIED, "DENIED")

    with pytest.raises(alignserve.PermissionDeniedError):
        collect(texts(1))

    assert stream_messages(server) == []


def test_an_exception_of_the_callers_items_arrives_after_their_results(collect: Collect) -> None:
    """Items read before are answered; then the source's exception is raised."""

    def items() -> Iterator[Item]:
        yield TextItem("a")
        raise LookupError("the caller's own")

    with pytest.raises(LookupError, match="the caller's own"):
        collect(items())


@pytest.mark.parametrize(
    ("item", "error"),
    [("not an item", TypeError), (TextItem(5), TypeError), (TextItem("x", dtype="int4"), ValueError)],  # type: ignore[arg-type]
    ids=["no item", "no text", "no dtype"],
)
def test_a_mistake_of_the_caller_ends_the_stream(collect: Collect, item: Any, error: type[Exception]) -> None:
    """A programming error is raised, not yielded as the failure of an item."""
    with pytest.raises(error):
        collect([TextItem("a"), item, TextItem("b")])


def test_values_of_another_kind_of_item_are_refused(collect: Collect) -> None:
    """A ClassifyItem has no embedding, and other items have no classifications."""
    text, classified = collect([TextItem("a"), ClassifyItem(b"x", ["cat"])], ordered=True)

    with pytest.raises(TypeError, match="a ClassifyItem has no embedding; use classifications"):
        _ = classified.embedding
    with pytest.raises(TypeError, match="TextItem has no classifications; use embedding"):
        _ = text.classifications


def test_the_limits_are_asked_for_within_the_streams_deadline(server: FakeServer, collect: Collect) -> None:
    """A hanging server does not block a stream beyond its deadline."""
    server.hold()

    with pytest.raises(alignserve.DeadlineExceededError):
        collect(texts(1), timeout_seconds=0.05)


def test_a_pause_that_outlasts_the_streams_deadline_is_not_begun(
    server: FakeServer, collect: Collect, time: Any
) -> None:
    """A stream with a five-second deadline, whose server asks for nine, ends at once."""
    server.fail_input("0", grpc.StatusCode.UNAVAILABLE, "MODEL_LOADING", retry_delay_seconds=9)

    with pytest.raises(alignserve.DeadlineExceededError):
        collect(texts(1), timeout_seconds=5)

    assert time.sleeps == []


def test_a_stream_whose_source_is_silent_ends_at_its_deadline(client: Client) -> None:
    """The deadline also applies while there is nothing to send."""
    never = threading.Event()

    def items() -> Iterator[Item]:
        never.wait()
        yield TextItem("never")

    with pytest.raises(alignserve.DeadlineExceededError):
        list(client.stream(items(), timeout_seconds=0.05))

    never.set()


async def test_a_stream_whose_source_is_silent_ends_at_its_deadline_async(async_client: AsyncClient) -> None:
    """The deadline also applies while there is nothing to send."""

    async def items() -> AsyncIterator[Item]:
        await asyncio.Event().wait()
        yield TextItem("never")

    with pytest.raises(alignserve.DeadlineExceededError):
        [result async for result in async_client.stream(items(), timeout_seconds=0.05)]


class WatchedItems(InFlightItems):
    """Items in flight that record when they are read without their lock."""

    lock: Any
    unguarded = 0

    @property
    def has_unanswered(self) -> bool:
        self.unguarded += not self.lock._is_owned()
        return super().has_unanswered


def test_items_in_flight_are_read_only_under_their_lock(client: Client) -> None:
    """The receiver does not iterate over entries while the caller's thread removes them."""
    stream = Stream(
        client._transport,
        client._stub.StreamInfer,
        texts(20),
        ordered=False,
        window=4,
        max_request_bytes=1000,
        deadline=float("inf"),
    )
    in_flight = WatchedItems(4, ordered=False)
    in_flight.lock = stream._changed
    stream._in_flight = in_flight

    results = list(stream.results())

    assert len(results) == 20
    assert in_flight.unguarded == 0


def test_items_are_never_read_further_ahead_than_the_window(client: Client) -> None:
    """Whenever a result arrives, at most a window of items was read beyond it."""
    read: list[int] = []

    def items() -> Iterator[Item]:
        for number in range(50):
            read.append(number)
            yield TextItem(str(number))

    leads = []
    for taken, _ in enumerate(client.stream(items(), window=4), start=1):
        leads.append(len(read) - taken)

    assert len(read) == 50
    assert max(leads) <= 4


async def test_items_are_never_read_further_ahead_than_the_window_async(async_client: AsyncClient) -> None:
    """The asyncio client keeps the same bound, with an asynchronous source."""
    read: list[int] = []

    async def items() -> AsyncIterator[Item]:
        for number in range(50):
            read.append(number)
            yield TextItem(str(number))

    leads = []
    taken = 0
    async for _ in async_client.stream(items(), window=4):
        taken += 1
        leads.append(len(read) - taken)

    assert len(read) == 50
    assert max(leads) <= 4


def test_results_arrive_while_the_source_is_silent(client: Client) -> None:
    """A live source gets the answer to its first item before it yields a second one."""
    first_is_answered = threading.Event()

    def items() -> Iterator[Item]:
        yield TextItem("a", id=1)
        assert first_is_answered.wait(10)
        yield TextItem("b", id=2)

    seen = []
    for result in client.stream(items()):
        seen.append(result.id)
        first_is_answered.set()

    assert seen == [1, 2]


@contextmanager
def silent_server() -> Iterator[tuple[str, threading.Event, threading.Event]]:
    """Runs a server that accepts streams and never answers; the events signal a stream's start and end."""
    opened, ended = threading.Event(), threading.Event()

    def stream(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        context.add_callback(ended.set)
        next(requests)
        opened.set()
        for _ in requests:
            pass
        yield from ()

    info = alignserve.v1.align_service_pb2.GetModelInfoResponse(max_request_bytes=1000)
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "StreamInfer": grpc.stream_stream_rpc_method_handler(stream),
        "GetModelInfo": grpc.unary_unary_rpc_method_handler(lambda _, __: info.SerializeToString()),
    }
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("alignserve.v1.AlignService", handlers)]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", opened, ended
    finally:
        server.stop(None).wait()


def test_leaving_early_cancels_the_stream() -> None:
    """Closing the generator ends the server's call and the client's threads."""
    with silent_server() as (target, opened, ended), Client(target) as client:
        stream = client.stream(endless_with_missing_file())
        next(stream)
        assert opened.wait(10)

        stream.close()

        assert ended.wait(10)
    assert_no_threads_left()


async def test_leaving_early_cancels_the_stream_async() -> None:
    """Closing the asynchronous generator ends the server's call."""
    with silent_server() as (target, opened, ended):
        async with AsyncClient(target) as client:
            async with aclosing(client.stream(endless_with_missing_file())) as stream:
                await anext(stream)
                assert await asyncio.to_thread(opened.wait, 10)

            assert await asyncio.to_thread(ended.wait, 10)


def endless_with_missing_file() -> Iterator[Item]:
    yield TextItem("a")
    yield ImageItem("nowhere.jpg")  # has its result at once, from a server that never answers
    while True:
        yield TextItem("a")


def assert_no_threads_left() -> None:
    for thread in threading.enumerate():
        if thread.name in {"alignserve-feed", "alignserve-receive"}:
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_window_of_nothing_is_refused_where_it_is_asked_for(kind: Any) -> None:
    """Invalid arguments are reported by the call, not with the first result."""
    client = kind("127.0.0.1:1")

    with pytest.raises(ValueError, match="window is 0"):
        client.stream([], window=0)

    closing = client.close()
    if closing is not None:
        await closing
