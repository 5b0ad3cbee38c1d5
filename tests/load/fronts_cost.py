"""CPU time of the device process and of its fronts, for each item: `python -m tests.load.fronts_cost`.

It counts what `device_cost` counts, and the transport between the processes. No input comes twice. Each
front is one caller with a number of requests in flight; it makes up pixels and tokens, so its figures leave
out decoding, tokenizing and gRPC. With `--profile` the device's time is also shown by function, which makes
it slower.
"""

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import uvloop
from alignserve_server.batching.admission import QueueLimits
from alignserve_server.batching.backend import AdmissionRequest, InferenceBackend, PreparedItems
from alignserve_server.batching.fair_queue import Flow, Priority
from alignserve_server.batching.local_backend import CacheBytes
from alignserve_server.batching.request import Embedded
from alignserve_server.fronts.device import DeviceServer
from alignserve_server.fronts.front import FrontBackend

from tests.load.device_cost import DIMENSION, MAX_BATCH_SIZE, InstantEncoder
from tests.load.report import table
from tests.processes import ROOT
from tests.unit.fronts.processes import new_device

_SHAPE = (289, 289, 3)
_TOKENS = 16


class NoBatching:
    """A backend that answers at once, so that what is left is the transport."""

    def __init__(self) -> None:
        self.info = InstantEncoder().info
        self._answer = Embedded(
            np.ones((MAX_BATCH_SIZE, DIMENSION), np.float32), 0.0, 0.0, 1, 0, frozenset({(0, 1)})
        )

    def has_cache(self, modality: str) -> bool:
        """Has none."""
        return False

    def request_room(self, reservation: int, request: AdmissionRequest) -> None:
        """Has room for everything."""

    def submit(self, reservation: int, items: PreparedItems, on_done: Callable[[Embedded], object]) -> None:
        """Answers with the same vector for each item."""
        embeddings = self._answer.embeddings[: len(items.sizes)]
        on_done(self._answer._replace(embeddings=embeddings))

    def release(self, reservation: int, *, is_served: bool = True) -> None:
        """Has nothing to free."""


class Load(NamedTuple):
    """What the fronts send."""

    modality: str
    items: int  # of a request
    in_flight: int  # requests of all fronts together
    fronts: int


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fronts", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each row and turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="also by function, for requests of 64")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role:
        run: Any = {"device": _device, "front": _front}[given.role[0]]
        uvloop.run(run(*given.role[1:]))
        return
    loads = [
        Load(modality, items, in_flight, given.fronts)
        for modality in ("text", "image")
        for items, in_flight in ((64, 2), (64, 8), (8, 8), (1, 64), (1, 4))
    ]
    costs: dict[Load, list[tuple[float, ...]]] = {load: [] for load in loads}
    for _ in range(given.turns):
        for load in loads:
            (transport, _), whole = (
                measure(load, given.seconds, device) for device in ("transport", "whole")
            )
            costs[load].append((*whole, transport))
    rows = [(*load, *(round(float(each), 1) for each in np.median(costs[load], axis=0))) for load in loads]
    heads = ["modality", "items", "in flight", "fronts", "device µs", "front µs", "device's transport µs"]
    print(table(heads, rows))
    if given.profile:
        for load in (loads[0], loads[3], loads[5]):
            print(f"\n{load}", flush=True)
            measure(load, given.seconds, "profiled")


def measure(load: Load, seconds: float, kind: str) -> tuple[float, float]:
    """Returns the CPU microseconds of an item in the device and in its front."""
    with ExitStack() as started, tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "socket")
        device = started.enter_context(_process("device", path, kind))
        in_flight = str(max(1, load.in_flight // load.fronts))
        fronts = [
            started.enter_context(
                _process("front", path, load.modality, str(load.items), in_flight, str(number))
            )
            for number in range(load.fronts)
        ]
        time.sleep(0.5)  # caches fill, places are written once
        before = [_ask(each) for each in (device, *fronts)]
        time.sleep(seconds)
        after = [_ask(each) for each in (device, *fronts)]
        (device_seconds, *front_seconds), (_, *items) = zip(
            *((new[0] - old[0], new[1] - old[1]) for old, new in zip(before, after, strict=True)), strict=True
        )
        if kind == "profiled":
            device.stdin.close()
            print(device.stdout.read())
        return device_seconds / sum(items) * 1e6, sum(front_seconds) / sum(items) * 1e6


def _process(*role: str) -> Any:
    command = [sys.executable, "-m", "tests.load.fronts_cost", "--role", *role]
    process: Any = _Killed(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


class _Killed(subprocess.Popen):
    def __exit__(self, *error: Any) -> None:
        self.kill()
        super().__exit__(*error)


def _ask(process: Any) -> tuple[float, int]:
    """Returns the CPU seconds of a process, and how many items it has had an answer for."""
    print(file=process.stdin, flush=True)
    seconds, items = json.loads(process.stdout.readline())
    return seconds, items


async def _device(path: str, kind: str) -> None:
    if kind == "transport":
        device = DeviceServer(NoBatching())  # type: ignore[arg-type]  # the part that is used
    else:
        limits, caches = QueueLimits(1024, 256 << 20), CacheBytes(0, 64 << 20)
        device, _ = new_device(
            InstantEncoder(), limits=limits, cache_bytes=caches, max_batch_size=MAX_BATCH_SIZE
        )
    await device.start(path)
    print("ready", flush=True)
    profile = cProfile.Profile(time.process_time)
    if kind == "profiled":
        profile.enable()
    await _report(lambda: 0)
    if kind == "profiled":
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
        sys.stdout.flush()
    os._exit(0)


async def _front(path: str, modality: str, items: str, in_flight: str, name: str) -> None:
    backend = await FrontBackend.connect(path, lambda _: None, lambda _: None)
    flow = Flow(f"front {name}", Priority.INTERACTIVE)
    reservations, answered = count(1), count()
    done = 0

    async def call() -> None:
        nonlocal done
        while True:
            reservation = next(reservations)
            deadline = time.monotonic() + 600.0  # also on a machine that is late
            number = int(items)
            await backend.admit(reservation, AdmissionRequest(modality, number, 64 * number, flow, deadline))
            await backend.embed(reservation, _inputs(backend, modality, number, int(name), answered))
            backend.release(reservation)
            done += number

    print("ready", flush=True)
    calls: asyncio.Future[Any] = asyncio.gather(*(call() for _ in range(int(in_flight))))
    report: asyncio.Future[Any] = asyncio.ensure_future(_report(lambda: done))
    await asyncio.wait([calls, report], return_when=asyncio.FIRST_COMPLETED)
    if calls.done():
        await calls  # raises its error
    os._exit(0)


def _inputs(backend: InferenceBackend, modality: str, number: int, name: int, numbers: Any) -> PreparedItems:
    sizes = [64] * number
    if modality == "text":
        rest = array("i", range(_TOKENS - 2)).tobytes()
        return PreparedItems.of_texts(
            [array("i", (name, next(numbers))).tobytes() + rest for _ in range(number)], sizes
        )
    assert isinstance(backend, FrontBackend)
    pixels = [backend.new_pixels(_SHAPE) for _ in range(number)]
    return PreparedItems(pixels, sizes, [b"%8d%8d" % (name, next(numbers)) for _ in range(number)])


async def _report(done: Any) -> None:
    """Prints the CPU seconds of this process and the number of items for each line of standard input."""
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps([time.process_time(), done()]), flush=True)


if __name__ == "__main__":
    main()
