"""A stream holds a limited number of items while it runs, and nothing afterwards."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve_server.batching.call import CallContext
from alignserve_server.errors import QueueFull, ShuttingDown, StreamAged
from alignserve_server.observability.metrics import Metrics
from alignserve_server.rpc.response_limit import ResponseLimit
from alignserve_server.rpc.response_room import ResponseRoom
from alignserve_server.rpc.shares import ConnectionShares
from alignserve_server.rpc.streaming import InferStream

from tests.unit.fakes import settle

WINDOW = 4


class Held:
    """An object that an item keeps in memory while it runs."""


class Service:
    """Admits and answers items only when told to, and tracks what they hold."""

    def __init__(self) -> None:
        self.calls: list[CallContext] = []
        self.answers: list[asyncio.Future[None]] = []
        self.held: weakref.WeakSet[Held] = weakref.WeakSet()
        self.is_admitting = True

    async def infer(self, request: pb.StreamInferRequest, call: CallContext, room: ResponseRoom) -> bytes:
        held = Held()
        self.held.add(held)
        self.calls.append(call)
        answer = asyncio.get_running_loop().create_future()
        self.answers.append(answer)
        if self.is_admitting:
            self.admit(-1)
        await answer
        return b""

    def admit(self, position: int) -> None:
        on_admitted = self.calls[position].on_admitted
        assert on_admitted is not None
        on_admitted()


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def written() -> list[str]:
    return []


def new_stream(
    service: Service,
    write: Callable[[bytes], Awaitable[None]],
    metrics: Metrics,
    unread: ConnectionShares | None = None,
) -> InferStream:
    limit = ResponseLimit(1 << 20, can_be_raised=False)
    unread = unread or ConnectionShares(1 << 20)
    return InferStream(
        service.infer,
        write,
        lambda _: ResponseRoom(limit, unread, "connection", waits=True),
        CallContext(waits_for_room=True),
        metrics,
        max_in_flight=WINDOW,
    )


@pytest.fixture
def stream(service: Service, written: list[str], metrics: Metrics) -> InferStream:
    async def write(response: bytes) -> None:
        written.append(pb.StreamInferResponse.FromString(response).correlation_id)

    return new_stream(service, write, metrics)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Disables the garbage collector, so that cycles are not freed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def _requests(count: int) -> AsyncIterator[pb.StreamInferRequest]:
    for number in range(count):
        yield pb.StreamInferRequest(correlation_id=str(number))


async def _endless() -> AsyncIterator[pb.StreamInferRequest]:
    async for request in _requests(1_000_000):
        yield request


async def test_at_most_one_item_waits_for_room(stream, service, written):
    """The next message is read only when the previous one is admitted; until then the client keeps it."""
    service.is_admitting = False
    running = asyncio.create_task(stream.run(_requests(3)))
    await settle()
    read_before = len(service.calls)

    service.admit(0)
    await settle()

    assert (read_before, len(service.calls)) == (1, 2)
    running.cancel()


async def test_a_refused_item_does_not_stop_the_reading(stream, service, written):
    """If an item fails before it is admitted, the next one is read."""
    service.is_admitting = False
    running = asyncio.create_task(stream.run(_requests(2)))
    await settle()

    service.answers[0].set_exception(QueueFull("full"))
    await settle()
    service.answers[1].set_result(None)
    await running

    assert written == ["0", "1"]


@pytest.mark.usefixtures("no_collector")
async def test_a_cancelled_stream_is_freed_immediately(stream, service):
    """Its items do not stay in memory until the garbage collector reaches the oldest generation."""
    running = asyncio.create_task(stream.run(_endless()))
    await settle()
    held_before = len(service.held)

    running.cancel()
    await asyncio.wait({running})
    del running
    service.answers.clear()
    await settle()

    assert (held_before, len(service.held)) == (WINDOW, 0)


@pytest.mark.usefixtures("no_collector")
async def test_a_stream_that_cannot_be_written_to_is_freed_immediately(service, metrics):
    """The same applies if the stream ends with the client's connection."""

    async def write(_: bytes) -> None:
        raise ConnectionError("client is gone")

    stream = new_stream(service, write, metrics)
    running = asyncio.create_task(stream.run(_endless()))
    await settle()

    service.answers[0].set_result(None)
    await asyncio.wait({running})
    is_failed = isinstance(running.exception(), ConnectionError)
    del running
    service.answers.clear()
    await settle()

    assert is_failed
    assert len(service.held) == 0


async def test_a_stream_that_is_drained_before_it_starts_ends(stream, service):
    """A stop between the creation of a stream and its reader's first step leaves no client waiting."""
    running = asyncio.create_task(stream.run(_endless()))
    await asyncio.sleep(0)  # `run` has started, its reader has not

    stream.drain(ShuttingDown)

    with pytest.raises(ShuttingDown):
        await asyncio.wait_for(running, 5.0)
    assert service.calls == []


async def test_a_drained_stream_answers_what_it_has_read(stream, service, written):
    """An item that waits for room has been read, so it is answered too."""
    service.is_admitting = False
    running = asyncio.create_task(stream.run(_endless()))
    await settle()

    stream.drain(ShuttingDown)
    await settle()
    service.answers[0].set_result(None)

    with pytest.raises(ShuttingDown):
        await running
    assert written == ["0"]


async def test_a_stream_is_drained_for_the_first_reason(stream, service):
    """A stream that has reached its maximum age reports that, even if the server then stops."""
    running = asyncio.create_task(stream.run(_endless()))
    await settle()

    stream.drain(StreamAged)
    stream.drain(ShuttingDown)
    for answer in service.answers:
        answer.set_result(None)

    with pytest.raises(StreamAged):
        await running


async def test_a_stream_that_has_read_everything_ends_without_an_error(stream, service, written):
    """The client has sent everything, so it has nothing to resend."""
    running = asyncio.create_task(stream.run(_requests(1)))
    await settle()

    stream.drain(StreamAged)
    service.answers[0].set_result(None)
    await running

    assert written == ["0"]


class ServiceWithRoom(Service):
    """Takes room for each response."""

    async def infer(self, request: pb.StreamInferRequest, call: CallContext, room: ResponseRoom) -> bytes:
        await room.take_for_embeddings("texts", 1000)
        return await super().infer(request, call, room)


async def test_a_stream_that_is_cancelled_while_it_fails_gives_its_room_back(metrics):
    """When a client disconnects, gRPC fails the write and cancels the call right afterwards."""
    service, held = ServiceWithRoom(), [0.0]

    async def write(_: bytes) -> None:
        asyncio.get_running_loop().call_soon(running.cancel)
        raise ConnectionError

    stream = new_stream(service, write, metrics, ConnectionShares(1 << 20, held.append))
    running = asyncio.create_task(stream.run(_endless()))
    await settle()
    held_before = held[-1]
    service.answers[0].set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await running

    assert held_before >= WINDOW * 1000
    assert held[-1] == 0
