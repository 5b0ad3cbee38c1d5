"""The device's socket stays reachable, whatever happens to its file and to other resources."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory

import pytest
from alignserve_server.errors import StartupError
from alignserve_server.fronts import listener
from alignserve_server.fronts.listener import Listener
from structlog.testing import capture_logs

from tests.unit.fakes import settle


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A socket's path in a folder of its own, checked all the time."""
    monkeypatch.setattr(listener, "_CHECK_SECONDS", 0.0)
    monkeypatch.setattr(listener, "_PAUSE_SECONDS", 0.05)
    with TemporaryDirectory() as folder:  # pytest's own are too long for a socket
        yield Path(folder) / "own" / "socket"


class Door:
    """A listener and the connections that it has accepted."""

    def __init__(self, path: Path) -> None:
        self.accepted: asyncio.Queue[socket.socket] = asyncio.Queue()
        self.listener = Listener(path, self.accepted.put_nowait)

    async def serves(self, path: Path) -> bool:
        """Connects, and returns whether the connection is accepted."""
        with closing(socket.socket(socket.AF_UNIX)) as caller:
            caller.connect(str(path))
            (await self.accepted.get()).close()
        return True


@contextmanager
def door(path: Path) -> Iterator[Door]:
    """Listens for the length of the block."""
    door = Door(path)
    try:
        yield door
    finally:
        door.listener.close()


def is_there(path: Path) -> bool:
    return path.exists()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


async def made(path: Path) -> None:
    """Returns when the socket is there."""
    while not is_there(path):
        await asyncio.sleep(0)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Lets this process open no more files for the length of the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_deleted_folder_is_made_again(path: Path) -> None:
    """Only this user can enter it, and the socket is there again."""
    with door(path) as served, capture_logs() as logs:
        rmtree(path.parent)
        await made(path)

        assert await served.serves(path)
        assert mode(path.parent) == 0o700
        assert [event["event"] for event in logs] == ["socket_deleted"]
    assert not is_there(path)


async def test_a_deleted_socket_is_made_again_as_soon_as_it_can_be(path: Path) -> None:
    """Until then each attempt is logged."""
    with door(path) as served, capture_logs() as logs:
        replace_by_folder(path)
        while not any(event["event"] == "socket_not_made" for event in logs):
            await asyncio.sleep(0)
        rmtree(path)
        await made(path)

        assert await served.serves(path)


async def test_a_socket_that_has_replaced_another_stays_when_that_is_closed(path: Path) -> None:
    """The next device may listen before the last one has ended."""
    first = Door(path)
    with door(path) as second:
        await settle()  # both have checked the path
        assert await second.serves(path)
        first.listener.close()

        assert await second.serves(path)


async def test_a_folder_of_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others could replace the socket."""
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)

    with pytest.raises(StartupError, match="another user"):
        Listener(path, lambda _: None)


async def test_it_pauses_when_there_are_no_descriptors(path: Path) -> None:
    """The event loop would spin otherwise; the connection waits."""
    with door(path) as served, closing(socket.socket(socket.AF_UNIX)) as caller:
        with no_descriptors(), capture_logs() as logs:
            caller.connect(str(path))
            await settle()
        (await served.accepted.get()).close()

    assert [event["event"] for event in logs] == ["connection_not_accepted"]
