"""A server process on the embedded checkpoint, with checks of its health."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from alignserve_server.modality import MODALITIES
from alignserve_server.model.preprocessing import heif
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.serving import image_request, read_status, refusal_of
from tests.processes import ROOT, ServerProcess

PHOTOS = ROOT / "tests" / "data" / "photos"
GOOD_IMAGE = (PHOTOS / "cat.jpg").read_bytes()

DECODE_THREADS = 2
IMAGE_FORMATS = "avif,tiff,heic" if heif.is_installed() else "avif,tiff"
# Memory of each decoding at the server's pixel limit: per pixel the coefficients of a progressive JPEG
# (6 bytes), up to four channels, and the RGB copy.
MAX_DECODING_BYTES = DECODE_THREADS * 25_000_000 * (6 + 4 + 3) + (64 << 20)

_AT_ONCE = 16  # concurrent calls
_OUTCOMES = ("ok", "failed", "cancelled", "expired")
_ACCEPTED, _IN_FLIGHT, _ITEMS = _COUNTS = (
    "alignserve_items_accepted_total",
    "alignserve_items_in_flight",
    "alignserve_items_total",
)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a call or stream item, as its caller sees it."""

    code: str
    reason: str = ""
    fields: tuple[str, ...] = ()
    response: Any = field(default=None, compare=False, repr=False)


OK = Outcome("OK")


async def outcome_of(call: Awaitable[Any]) -> Outcome:
    """Awaits a call, whether it succeeds or not."""
    try:
        return Outcome("OK", response=await call)
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error)
        return Outcome(refusal.code.name, refusal.reason, tuple(refusal.fields))


async def outcomes_of(calls: Iterable[Awaitable[Any]]) -> list[Outcome]:
    """Runs calls, a few at a time, and returns their outcomes in order."""
    outcomes: dict[int, Outcome] = {}
    numbered = enumerate(calls)

    async def caller() -> None:
        for number, call in numbered:
            outcomes[number] = await outcome_of(call)

    await asyncio.gather(*(caller() for _ in range(_AT_ONCE)))
    return [outcomes[number] for number in sorted(outcomes)]


class LiveServer:
    """A server process and a channel to it."""

    def __init__(self, server: ServerProcess, channel: grpc.aio.Channel) -> None:
        self.port = server.port
        self.channel = channel
        self.stub = pb_grpc.AlignServiceStub(channel)
        self._process = server.process
        self._metrics_port = server.metrics_port

    @property
    def is_running(self) -> bool:
        """Whether the process that was started still runs."""
        return self._process.poll() is None

    async def good_embedding(self) -> bytes:
        """Embeds the good image."""
        response = await self.stub.EmbedImage(image_request(GOOD_IMAGE))
        return response.embeddings[0].packed_float32

    async def accounts(self) -> list[dict[str, float]]:
        """Returns the item counts of each modality once none is in flight: accepted, and by outcome."""
        values = await asyncio.to_thread(self._read_items)
        while any(values[_IN_FLIGHT, modality, ""] for modality in MODALITIES):
            await asyncio.sleep(0.002)
            values = await asyncio.to_thread(self._read_items)
        return [
            {"accepted": values[_ACCEPTED, m, ""], **{o: values[_ITEMS, m, o] for o in _OUTCOMES}}
            for m in MODALITIES
        ]

    def watch_memory(self) -> MemoryWatch:
        """Starts measuring the process's peak memory."""
        return MemoryWatch(self._process.pid)

    async def stream(self, requests: Iterable[pb.StreamInferRequest]) -> list[Outcome]:
        """Sends requests over one stream, and returns the outcomes in order."""

        async def numbered() -> AsyncIterator[pb.StreamInferRequest]:
            for number, request in enumerate(requests):
                request.correlation_id = str(number)
                yield request

        outcomes = {}
        async for response in self.stub.StreamInfer(numbered()):
            outcomes[int(response.correlation_id)] = _outcome_in(response)
        return [outcomes[number] for number in sorted(outcomes)]

    def _read_items(self) -> dict[tuple[str, str, str], float]:
        """Returns the item counts of /metrics by name, modality and outcome."""
        url = f"http://127.0.0.1:{self._metrics_port}/metrics"
        with urllib.request.urlopen(url) as page:
            lines = page.read().decode().splitlines(keepends=True)
        counts = "".join(line for line in lines if line.startswith(_COUNTS))
        return {
            (sample.name, sample.labels.get("modality", ""), sample.labels.get("outcome", "")): sample.value
            for family in text_string_to_metric_families(counts)
            for sample in family.samples
        }


class MemoryWatch:
    """The memory growth of a process from now on. Linux records the peak, so that none is missed."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        (self._folder / "clear_refs").write_text("5")  # resets the peak to the memory that is resident now
        self._before = self._peak()

    @property
    def growth(self) -> int:
        """Resident bytes at the peak, minus those when the watch started."""
        return self._peak() - self._before

    def _peak(self) -> int:
        status = dict(
            line.split(":", 1) for line in (self._folder / "status").read_text().splitlines() if ":" in line
        )
        return int(status["VmHWM"].split()[0]) << 10


def _outcome_in(response: pb.StreamInferResponse) -> Outcome:
    kind = response.WhichOneof("result")
    if kind != "error":
        return Outcome("OK", response=getattr(response, kind or ""))
    code, _, reason, fields, *_ = read_status(response.error)
    (name,) = (each.name for each in grpc.StatusCode if each.value[0] == code)
    return Outcome(name, reason, tuple(fields))
