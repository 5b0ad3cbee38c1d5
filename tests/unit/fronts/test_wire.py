"""A wire carries whole messages, many at once, and ends with a peer that breaks the rules."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from alignserve_server.fronts.messages import message
from alignserve_server.fronts.wire import Wire
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.unit.fakes import settle


class End:
    """A wire, and the messages that have arrived on it."""

    def __init__(self, connected: socket.socket) -> None:
        self.arrived: list[tuple[int, bytes]] = []
        self.news = asyncio.Event()
        self.ended = asyncio.Event()
        self.wire = Wire(connected, self._note, self.ended.set)

    def _note(self, kind: int, body: memoryview) -> None:
        if kind == 99:
            raise ValueError("not a message")
        self.arrived.append((kind, bytes(body)))
        self.news.set()

    async def receive(self, number: int) -> list[tuple[int, bytes]]:
        """Waits until that many messages have arrived."""
        while len(self.arrived) < number:
            self.news.clear()
            await self.news.wait()
        return self.arrived


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with closing(here), closing(there):
        yield here, there


async def test_messages_arrive_in_order(sockets: tuple[socket.socket, socket.socket]) -> None:
    here, there = map(End, sockets)

    for kind in range(3):
        here.wire.send(message(kind, b"body %d" % kind))

    assert await there.receive(3) == [(0, b"body 0"), (1, b"body 1"), (2, b"body 2")]
    here.wire.close()
    await there.ended.wait()
    assert not there.wire.is_open


async def test_closing_is_no_end_even_if_the_other_end_is_gone(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    """The owner that closes a wire frees what it holds itself, and must not do so twice."""
    here = End(sockets[0])
    sockets[1].close()

    here.wire.send(message(1, b"too late"))
    here.wire.close()

    assert not here.wire.is_open
    assert not here.ended.is_set()


async def test_messages_of_one_iteration_leave_together(sockets: tuple[socket.socket, socket.socket]) -> None:
    here = End(sockets[0])

    for _ in range(100):
        here.wire.send(message(1, b"x"))
    await settle()

    assert sockets[1].recv(10_000) == 100 * message(1, b"x")
    here.wire.close()


async def test_a_message_larger_than_all_buffers_arrives(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    """Those behind it follow in order, and the wire still works afterwards."""
    here, there = map(End, sockets)
    large = bytes(range(256)) * 20_000

    here.wire.send(message(1, large))
    here.wire.send(message(2, b"next"))
    await there.receive(2)
    there.wire.send(message(3, b"back"))
    here.wire.send(message(4, large))

    assert await there.receive(3) == [(1, large), (2, b"next"), (4, large)]
    assert await here.receive(1) == [(3, b"back")]
    assert not asyncio.get_running_loop().remove_writer(sockets[0])  # it would be called all the time
    here.wire.close()
    there.wire.close()


@given(
    st.lists(st.tuples(st.integers(0, 98), st.binary(max_size=40)), min_size=1, max_size=8),
    st.lists(st.integers(1, 30), min_size=1),
)
def test_messages_may_arrive_in_any_pieces(sent: list[tuple[int, bytes]], pieces: list[int]) -> None:
    async def run() -> list[tuple[int, bytes]]:
        raw, connected = socket.socketpair()
        with closing(raw):
            end = End(connected)
            data = b"".join(message(kind, body) for kind, body in sent)
            for number in range(len(data)):
                size = pieces[number % len(pieces)]
                if not data:
                    break
                raw.send(data[:size])
                data = data[size:]
                await asyncio.sleep(0)
            arrived = list(await end.receive(len(sent)))
            end.wire.close()
            return arrived

    assert asyncio.run(run()) == sent


@pytest.mark.parametrize(
    "data",
    [message(99), message(1, b"ok")[:-1] + b"\0" + message(99), b"\xff" * 100],
    ids=["refused by its handler", "after a good one", "impossible length"],
)
async def test_a_malformed_message_ends_the_connection(
    sockets: tuple[socket.socket, socket.socket], data: bytes
) -> None:
    there = End(sockets[1])

    with capture_logs() as lines:
        sockets[0].send(data)
        await there.ended.wait()

    assert [line["event"] for line in lines] == ["connection_malformed"]
    assert sockets[0].recv(100) == b""


async def test_a_truncated_message_is_dropped_with_its_connection(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    there = End(sockets[1])

    sockets[0].send(message(1, b"whole") + message(2, b"half")[:-2])
    sockets[0].close()
    await there.ended.wait()

    assert there.arrived == [(1, b"whole")]


async def test_messages_sent_before_closing_arrive(sockets: tuple[socket.socket, socket.socket]) -> None:
    here, there = map(End, sockets)

    here.wire.send(message(1, b"last"))
    here.wire.close()
    here.wire.send(message(2, b"too late"))
    await there.ended.wait()

    assert there.arrived == [(1, b"last")]
    assert not here.ended.is_set()


async def test_a_peer_that_never_reads_is_disconnected(
    sockets: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise what it does not read would fill the memory."""
    monkeypatch.setattr("alignserve_server.fronts.wire._MAX_UNSENT_BYTES", 1 << 20)
    here = End(sockets[0])

    with capture_logs() as lines:
        here.wire.send(message(1, bytes(3 << 20)))
        await here.ended.wait()

    assert [line["event"] for line in lines] == ["peer_does_not_read"]
