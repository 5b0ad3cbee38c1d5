"""A device and fronts in processes of their own, for the tests of this folder.

python -m tests.unit.fronts.processes device SOCKET   serves a `WatchedEncoder`; obeys lines of standard input
python -m tests.unit.fronts.processes front SOCKET    has requests in flight until it is killed
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from alignserve_server.batching.admission import QueueLimits
from alignserve_server.batching.backend import AdmissionRequest, PreparedItems
from alignserve_server.batching.batcher import Batcher
from alignserve_server.batching.fair_queue import Flow, Priority
from alignserve_server.batching.local_backend import CacheBytes, LocalBackend
from alignserve_server.batching.scheduler import BatchPolicy, Scheduler
from alignserve_server.fronts.device import DeviceServer
from alignserve_server.fronts.front import FrontBackend
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.observability.metrics import Metrics
from alignserve_server.serving.device_process import ReportingObserver
from prometheus_client import CollectorRegistry

from tests.processes import ROOT
from tests.unit.fakes import WatchedEncoder

MAX_ITEMS, OPEN_ITEMS = 8, 6  # in total, and the most that either unary calls or streams may fill
LIMITS = QueueLimits(MAX_ITEMS, 8000)
_CACHE_BYTES = CacheBytes(image=100_000, text=100_000)
GREETING = b"for each front"


def new_device(
    encoder: FakeEncoder,
    *,
    limits: QueueLimits = LIMITS,
    cache_bytes: CacheBytes = _CACHE_BYTES,
    max_batch_size: int = 8,
) -> tuple[DeviceServer, Batcher]:
    """Returns a device that serves an encoder once it is started, and its batcher."""
    observer = ReportingObserver(Metrics(CollectorRegistry()))
    policies = {modality: BatchPolicy(max_batch_size) for modality in ("image", "text")}
    batcher = Batcher(encoder, Scheduler(policies), observer, lanes=1)
    batcher.start()
    backend = LocalBackend(encoder.info, batcher, observer, limits, cache_bytes)
    observer.fronts = device = DeviceServer(backend, GREETING)
    return device, batcher


class DeviceProcess:
    """A device in a process of its own."""

    def __init__(self, path: str, process: subprocess.Popen[str]) -> None:
        self.path = path
        self.process = process

    async def hold(self) -> None:
        """Makes forwards wait for `resume`."""
        await self._order("hold")

    async def resume(self) -> None:
        """Lets forwards continue."""
        await self._order("resume")

    async def begun(self) -> None:
        """Waits until one more forward has started."""
        await self._order("begun")

    async def alone(self) -> None:
        """Waits until no front is connected."""
        await self._order("alone")

    def descriptors(self) -> int:
        """Returns how many files the process has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def mapped_memories(self) -> int:
        """Returns how many memories of fronts the process has mapped."""
        return Path(f"/proc/{self.process.pid}/maps").read_text().count("memfd:alignserve-front")

    async def _order(self, word: str) -> None:
        process: Any = self.process
        print(word, file=process.stdin, flush=True)
        assert await asyncio.to_thread(process.stdout.readline) == f"{word}\n"


@contextmanager
def device_process(path: str) -> Iterator[DeviceProcess]:
    """Starts a device, waits until it listens, and kills it at the end."""
    with _process("device", path) as process:
        yield DeviceProcess(path, process)


@contextmanager
def front_process(path: str) -> Iterator[subprocess.Popen[str]]:
    """Starts a front, waits until its requests are in flight, and kills it at the end."""
    with _process("front", path) as process:
        yield process


@contextmanager
def _process(role: str, path: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.unit.fronts.processes", role, path]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


async def run_device(path: str) -> None:
    """Serves until the process is killed or its standard input ends."""
    encoder = WatchedEncoder()
    device, _ = new_device(encoder)
    await device.start(path)
    print("ready", flush=True)
    while word := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if word == "hold":
            encoder.forget_begun()
            encoder.hold()
        elif word == "resume":
            encoder.resume()
        elif word == "begun":
            await encoder.begun()
        else:
            await device.fronts_gone()
        print(word, flush=True)


async def run_front(path: str) -> None:
    """Takes all the room that a stream may have, embeds an image, and waits for more room."""
    backend = await FrontBackend.connect(path, lambda _: None, lambda _: None)
    flow = Flow("front", Priority.INTERACTIVE)
    for reservation, modality in ((1, "text"), (2, "image")):
        request = AdmissionRequest(modality, OPEN_ITEMS, 6, flow, waits_for_room=True)
        await backend.admit(reservation, request)
    pixels = backend.new_pixels((4, 4, 3))
    pixels[:] = np.arange(3)
    images = PreparedItems([pixels] * OPEN_ITEMS, [1] * OPEN_ITEMS, [b"%d" % i for i in range(OPEN_ITEMS)])
    embedding = asyncio.create_task(backend.embed(2, images))
    waiting = asyncio.create_task(backend.admit(3, request))
    await asyncio.to_thread(backend.look_up, "image", b"none")  # the device has read all of it
    print("ready", flush=True)
    await asyncio.wait([embedding, waiting])


if __name__ == "__main__":
    asyncio.run({"device": run_device, "front": run_front}[sys.argv[1]](sys.argv[2]))
