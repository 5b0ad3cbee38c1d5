"""Clients that are closed during and before calls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import alignserve
import grpc
import pytest
from alignserve import AsyncClient, Client, Item, TextItem
from alignserve.testing import FakeServer

Use = Callable[[Client], object]
AsyncUse = Callable[[AsyncClient], Awaitable[object]]

USES: dict[str, Use] = {
    "one": lambda client: client.embed_text("a"),
    "list": lambda client: client.embed_text(["a"] * 30),
    "stream": lambda client: list(client.stream([TextItem("a")])),
    "info": lambda client: client.model_info(),
}


async def collected(client: AsyncClient) -> object:
    return [result async for result in client.stream([TextItem("a")])]


ASYNC_USES: dict[str, AsyncUse] = {
    "one": lambda client: client.embed_text("a"),
    "list": lambda client: client.embed_text(["a"] * 30),
    "stream": collected,
    "info": lambda client: client.model_info(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_closing_ends_what_is_in_flight(server: FakeServer, use: Use) -> None:
    """A call that waits in another thread fails because the client was closed."""
    client = Client(server.target)
    client.model_info()
    server.hold()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(use, client)
        server.wait_for_received(2)

        client.close()

        with pytest.raises(alignserve.CallCancelledError):
            waiting.result(10)


@pytest.mark.parametrize("use", ASYNC_USES.values(), ids=ASYNC_USES)
async def test_closing_ends_what_is_in_flight_async(server: FakeServer, use: AsyncUse) -> None:
    """Waiting tasks get an error of the client, not a cancellation."""
    client = AsyncClient(server.target)
    await client.model_info()
    server.hold()
    waiting = asyncio.ensure_future(use(client))
    await asyncio.to_thread(server.wait_for_received, 2)

    await client.close()

    with pytest.raises(alignserve.CallCancelledError):
        await asyncio.wait_for(waiting, 10)


async def test_a_cancelled_task_stays_cancelled_although_the_client_closes(server: FakeServer) -> None:
    """Cancelling a task and closing its client at once, as at shutdown, is a cancellation."""
    client = AsyncClient(server.target)
    server.hold()
    calls = [asyncio.ensure_future(use(client)) for use in ASYNC_USES.values()]
    await asyncio.to_thread(server.wait_for_received, len(calls))

    for call in calls:
        call.cancel()
    await client.close()

    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * len(calls)


def test_closing_ends_a_stream_whose_source_is_silent(server: FakeServer) -> None:
    """Closing ends a stream with a silent source, even without a connection."""
    client = Client(server.target)
    client.model_info()
    started, released = threading.Event(), threading.Event()

    def items() -> Iterator[Item]:
        started.set()
        released.wait()
        yield TextItem("too late")

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(list, client.stream(items()))
        assert started.wait(10)

        client.close()

        with pytest.raises(alignserve.CallCancelledError):
            waiting.result(10)
    released.set()


async def test_closing_ends_a_stream_whose_source_is_silent_async(server: FakeServer) -> None:
    """Closing ends a stream with a silent source, even without a connection."""
    client = AsyncClient(server.target)
    await client.model_info()
    started = asyncio.Event()

    async def items() -> AsyncIterator[Item]:
        started.set()
        await asyncio.Event().wait()
        yield TextItem("never")

    stream = client.stream(items())
    waiting = asyncio.ensure_future(anext(stream))
    await started.wait()

    await client.close()

    with pytest.raises(alignserve.CallCancelledError):
        await asyncio.wait_for(waiting, 10)
    await stream.aclose()


def test_closing_during_a_pause_ends_the_call(server: FakeServer, time: Any) -> None:
    """A call that waits for a full server does not use the closed channel."""
    server.fail_next(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_delay_seconds=1)
    wait = time.wait

    def close_and_wait(closed: threading.Event, seconds: float) -> bool:
        client.close()
        return bool(wait(closed, seconds))

    time.wait = close_and_wait
    client = Client(server.target, _clock=time.clock())

    with pytest.raises(alignserve.CallCancelledError):
        client.embed_text("a")

    assert len(server.received) == 1


async def test_closing_during_a_pause_ends_the_call_async(server: FakeServer) -> None:
    """Closing ends a pause, however long."""
    server.fail_next(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_delay_seconds=3000)
    client = AsyncClient(server.target, timeout_seconds=None)
    waiting = asyncio.ensure_future(client.embed_text("a"))
    await asyncio.to_thread(server.wait_for_received, 1)

    await client.close()

    with pytest.raises(alignserve.CallCancelledError):
        await asyncio.wait_for(waiting, 10)


@pytest.mark.parametrize("use", [*USES.values(), lambda client: client.is_ready()], ids=[*USES, "ready"])
@pytest.mark.parametrize("knows_limits", [True, False])
def test_a_closed_client_says_so(server: FakeServer, use: Use, knows_limits: bool) -> None:
    """Every later call raises the same error, and nothing is sent."""
    client = Client(server.target)
    if knows_limits:
        client.model_info()
    client.close()
    server.received.clear()

    with pytest.raises(alignserve.CallCancelledError, match="the client is closed"):
        use(client)

    assert server.received == []


@pytest.mark.parametrize(
    "use", [*ASYNC_USES.values(), lambda client: client.is_ready()], ids=[*ASYNC_USES, "ready"]
)
@pytest.mark.parametrize("knows_limits", [True, False])
async def test_a_closed_client_says_so_async(server: FakeServer, use: AsyncUse, knows_limits: bool) -> None:
    """Every later call raises the same error, and nothing is sent."""
    client = AsyncClient(server.target)
    if knows_limits:
        await client.model_info()
    await client.close()
    server.received.clear()

    with pytest.raises(alignserve.CallCancelledError, match="the client is closed"):
        await use(client)

    assert server.received == []


async def test_a_source_that_is_cancelled_ends_its_stream(async_client: AsyncClient) -> None:
    """Items read before are answered; then the source's CancelledError is raised."""

    async def items() -> AsyncIterator[Item]:
        yield TextItem("a", id=1)
        raise asyncio.CancelledError

    seen = []

    async def read() -> None:
        async for result in async_client.stream(items()):
            seen.append(result.id)  # noqa: PERF401 — a comprehension would lose what came before the error

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(read(), 10)

    assert seen == [1]


def test_a_stream_that_was_answered_outlives_its_client(server: FakeServer) -> None:
    """Results that have arrived are yielded, and the stream then ends without an error."""
    client = Client(server.target)
    stream = client.stream([TextItem("a", id=1)])
    first = next(stream)

    client.close()

    assert first.id == 1
    assert list(stream) == []
