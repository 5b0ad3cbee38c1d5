"""`make soak`: runs a server under load, with cancelled, broken and expired calls, and looks for leaks.

python -m tests.load.soak [--minutes 10] [--checkpoint fake] [--plant-leak memory|fds|tasks] [--output FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import urlopen

import grpc
import psutil
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

from tests.load.inputs import PHOTOS, TEXTS
from tests.load.report import number, table
from tests.processes import SERVER, ServerProcess, server_process

RESULTS = Path(__file__).parent / "RESULTS-soak.md"

_LEAKING = (sys.executable, "-m", "tests.load.peers.leaking_server")
_CALLERS, _STREAMS = 12, 2
_ODD_SHARE = 0.05  # of calls each that are cancelled, are broken or expire
_SAMPLE_SECONDS = 5.0
_SETTLE_SECONDS = 5.0  # after the last call
_WARM_SHARE = 0.5  # of the samples to ignore: caches, pools and arenas fill up first
_IN_FLIGHT = ("alignserve_items_in_flight", "alignserve_queue_entries", "alignserve_queue_bytes")


@dataclass(frozen=True)
class Sample:
    """The state of the server's process."""

    requests: int  # sent so far
    rss_mb: float
    fds: float
    threads: float
    tasks: float


@dataclass(frozen=True)
class Limit:
    """The maximum growth of a resource per 10,000 requests."""

    name: str
    unit: str
    per_10k: float


# gRPC leaks 0.3 kB per cancelled stream (grpc/grpc#43360), and memory kept by malloc varies by some MB.
LIMITS = {
    "rss_mb": Limit("resident memory", "MB", 1.0),
    "fds": Limit("open files", "", 2.0),
    "threads": Limit("threads", "", 2.0),
    "tasks": Limit("asyncio tasks", "", 5.0),
}


def growth(samples: Sequence[Sample], name: str) -> float:
    """Returns the growth per 10,000 requests over the second half of the samples.

    The slope is the median of the slopes between all pairs of samples (Theil-Sen), which single bumps do not
    affect.
    """
    late = samples[int(len(samples) * _WARM_SHARE) :]
    slopes = [
        (getattr(later, name) - getattr(earlier, name)) / (later.requests - earlier.requests)
        for position, earlier in enumerate(late)
        for later in late[position + 1 :]
        if later.requests > earlier.requests
    ]
    return 1e4 * statistics.median(slopes) if slopes else 0.0


def leaks(samples: Sequence[Sample]) -> list[str]:
    """Returns the names of resources that grow by more than their limit."""
    return [limit.name for name, limit in LIMITS.items() if growth(samples, name) > limit.per_10k]


class Soak:
    """Sends all kinds of calls, which end in all kinds of ways."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._stub = pb_grpc.AlignServiceStub(self._channel)
        self._rng = random.Random(0)
        self.requests = 0
        self.ends: dict[str, int] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Sends calls until told to stop."""
        callers = [self._call_on(stop) for _ in range(_CALLERS)]
        streams = [self._stream_on(stop) for _ in range(_STREAMS)]
        await asyncio.gather(*callers, *streams)
        await self._channel.close()

    async def _call_on(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self.requests += 1
            end = await self._one_call()
            self.ends[end] = self.ends.get(end, 0) + 1

    async def _one_call(self) -> str:
        is_cancelled, is_broken, expires = (self._rng.random() < _ODD_SHARE for _ in range(3))
        method, request = self._request(is_broken=is_broken)
        call = method(request, timeout=0.002 if expires else 30.0)
        if is_cancelled:
            await asyncio.sleep(self._rng.random() * 0.02)
            call.cancel()
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return error.code().name
        except asyncio.CancelledError:
            return "CANCELLED"
        return "OK"

    def _request(self, *, is_broken: bool):
        kind = self._rng.choice(("image", "text", "text", "text", "classify"))
        if kind == "text":
            return self._stub.EmbedText, pb.EmbedTextRequest(texts=["" if is_broken else self._text()])
        images = [pb.Image(content=b"broken" if is_broken else self._image())]
        if kind == "image":
            return self._stub.EmbedImage, pb.EmbedImageRequest(images=images)
        labels = ["cat", "rocket", f"label {self._rng.randrange(2000)}"]
        return self._stub.Classify, pb.ClassifyRequest(images=images, labels=labels)

    def _text(self) -> str:
        return f"{self._rng.choice(TEXTS)} {self._rng.randrange(1_000_000)}"

    def _image(self) -> bytes:
        return self._rng.choice(PHOTOS) + self._rng.randbytes(8)

    async def _stream_on(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            stream = self._stub.StreamInfer()
            is_cancelled = self._rng.random() < 4 * _ODD_SHARE
            with suppress(grpc.aio.AioRpcError, asyncio.CancelledError, asyncio.InvalidStateError):
                for number_ in range(20):
                    text = "" if self._rng.random() < _ODD_SHARE else self._text()
                    item = pb.StreamInferRequest(
                        correlation_id=str(number_), embed_text=pb.EmbedTextRequest(texts=[text])
                    )
                    await stream.write(item)
                    self.requests += 1
                if is_cancelled:
                    stream.cancel()
                await stream.done_writing()
                async for _ in stream:
                    pass


async def _watch(
    server: ServerProcess, soak: Soak, minutes: float, stop: asyncio.Event, sample_seconds: float
) -> list[Sample]:
    samples = []
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        await asyncio.sleep(sample_seconds)
        samples.append(await asyncio.to_thread(_sample, server, soak.requests))
        last = samples[-1]
        print(
            f"\r  {max(0, end - time.monotonic()) / 60:.1f} min left, {last.requests} requests, "
            f"{last.rss_mb:.0f} MB, {last.fds:.0f} files, {last.tasks:.0f} tasks ",
            end="",
            file=sys.stderr,
            flush=True,
        )
    print(file=sys.stderr)
    stop.set()
    return samples


def _sample(server: ServerProcess, requests: int) -> Sample:
    process = psutil.Process(server.process.pid)
    tasks = _metrics(server).get("alignserve_event_loop_tasks", 0.0)
    return Sample(requests, process.memory_info().rss / 1e6, process.num_fds(), process.num_threads(), tasks)


def _metrics(server: ServerProcess) -> dict[str, float]:
    with urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as page:
        lines = page.read().decode().splitlines()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines) if name[:1] != "#"
    }


def _in_flight(server: ServerProcess) -> dict[str, float]:
    """Waits until the gauges that must be 0 are 0, within a timeout; returns them."""
    end = time.monotonic() + _SETTLE_SECONDS
    while True:
        left = {name: value for name, value in _metrics(server).items() if name.startswith(_IN_FLIGHT)}
        if not any(left.values()) or time.monotonic() > end:
            return left
        time.sleep(0.1)


def soak(
    minutes: float, flags: Sequence[str], *, plant: str | None = None, sample_seconds: float = _SAMPLE_SECONDS
) -> tuple[list[Sample], dict[str, int], dict[str, float]]:
    """Runs a server under load; returns the samples, how calls ended, and the gauges that must end at 0."""

    async def run(server: ServerProcess) -> tuple[list[Sample], dict[str, int]]:
        load, stop = Soak(server.address), asyncio.Event()
        samples, _ = await asyncio.gather(_watch(server, load, minutes, stop, sample_seconds), load.run(stop))
        return samples, load.ends

    program = (*_LEAKING, plant) if plant else SERVER
    with server_process(*flags, program=program) as server:
        samples, ends = asyncio.run(run(server))
        left = _in_flight(server)
    return samples, ends, left


def _report(arguments: argparse.Namespace, samples: Sequence[Sample], ends: dict[str, int]) -> str:
    late = samples[int(len(samples) * _WARM_SHARE)]
    rows = [
        (
            limit.name,
            *(f"{getattr(sample, name):.0f} {limit.unit}" for sample in (samples[0], late, samples[-1])),
            f"{growth(samples, name):+.2f}",
            number(limit.per_10k),
        )
        for name, limit in LIMITS.items()
    ]
    head = ("", "first sample", "half time", "end", "growth per 10,000 requests", "limit")
    calls = ", ".join(f"{count} {code}" for code, count in sorted(ends.items()))
    command = f"python -m tests.load.soak --minutes {arguments.minutes:g} --checkpoint {arguments.checkpoint}"
    if arguments.plant_leak:
        command += f" --plant-leak {arguments.plant_leak}"
    date = datetime.now(UTC).date()
    return (
        f"# Soak\n\n`{command}`, {date}, {psutil.cpu_count()} cores, shared with the client.\n\n"
        f"{samples[-1].requests} requests. Unary calls ended with: {calls}.\n\n{table(head, rows)}\n"
    )


def main() -> int:
    """Runs the soak test; returns 1 if something leaks."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="duration (default: 10)")
    parser.add_argument(
        "--checkpoint", default="fake", help="folder, hub id, or fake for only the server (default: fake)"
    )
    parser.add_argument(
        "--plant-leak", choices=("memory", "fds", "tasks"), help="run a server with this leak"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="file to write the results to")
    arguments = parser.parse_args()
    samples, ends, left = soak(
        arguments.minutes, ("--checkpoint", arguments.checkpoint), plant=arguments.plant_leak
    )
    found = leaks(samples)
    stuck = [name for name, value in left.items() if value]
    verdict = f"Leaks: {', '.join(found)}." if found else "No leaks."
    verdict += f" Not 0 at the end: {', '.join(stuck)}." if stuck else " Nothing was in flight at the end."
    report = f"{_report(arguments, samples, ends)}\n{verdict}\n"
    print(report)
    arguments.output.write_text(report, encoding="utf-8")
    return 1 if found or stuck else 0


if __name__ == "__main__":
    raise SystemExit(main())
