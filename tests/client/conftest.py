"""A fake server, clients for it, and a clock that only moves during sleeps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from alignserve import AsyncClient, Client
from alignserve._clock import Clock
from alignserve.testing import FakeServer


@dataclass
class FakeTime:
    """The time that a client under test sees."""

    now: float = 1000.0
    sleeps: list[float] = field(default_factory=list)

    def clock(self) -> Clock:
        return Clock(lambda: self.now, self.wait, self.wait_async, lambda: 0.0)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        self.sleeps.append(seconds)
        self.now += seconds
        return event.is_set()

    async def wait_async(self, event: asyncio.Event, seconds: float) -> bool:
        return self.wait(event, seconds)  # type: ignore[arg-type]  # only `is_set` is used


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(embedding_dimension=8, max_client_batch_size=4) as fake:
        yield fake


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def client(server: FakeServer, time: FakeTime) -> Iterator[Client]:
    with Client(server.target, _clock=time.clock()) as made:
        yield made


@pytest.fixture
async def async_client(server: FakeServer, time: FakeTime) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.target, _clock=time.clock()) as made:
        yield made


@pytest.fixture
def photo() -> Path:
    return Path(__file__).parent.parent / "data/photos/cat.jpg"
