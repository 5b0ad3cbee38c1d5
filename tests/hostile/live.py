"""A server process on the embedded checkpoint, and how it fares."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.serving import PACKED, image_request, read_status, refusal_of
from tests.processes import ROOT, ServerProcess

PHOTOS = ROOT / "tests" / "data" / "photos"
GOOD_IMAGE = (PHOTOS / "cat.jpg").read_bytes()

_AT_ONCE = 16  # calls
_OUTCOMES = ("ok", "failed", "cancelled", "expired")


@dataclass(frozen=True)
class Outcome:
    """How a call or a stream's item ended, as its caller sees it."""

    code: str
    reason: str = ""
    fields: tuple[str, ...] = ()


OK = Outcome("OK")


async def outcome_of(call: Awaitable[Any]) -> Outcome:
    """Awaits a call, whether it succeeds or not."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error)
        return Outcome(refusal.code.name, refusal.reason, tuple(refusal.fields))
    return OK


class LiveServer:
    """The process and a channel to it."""

    def __init__(self, server: ServerProcess, channel: grpc.aio.Channel) -> None:
        self.port = server.port
        self.channel = channel
        self.stub = pb_grpc.AlignServiceStub(channel)
        self._process = server.process
        self._metrics_port = server.metrics_port

    @property
    def is_running(self) -> bool:
        """Whether the process is still the one that was started."""
        return self._process.poll() is None

    async def good_embedding(self) -> bytes:
        """Embeds the good image."""
        response = await self.stub.EmbedImage(image_request(GOOD_IMAGE))
        return response.embeddings[0].packed_float32

    async def account(self, modality: str) -> dict[str, float]:
        """Returns a modality's items once none is in flight: accepted, and by outcome."""
        while (values := await asyncio.to_thread(self._read_metrics))[
            "alignserve_items_in_flight", modality, ""
        ]:
            await asyncio.sleep(0.01)
        accepted = values["alignserve_items_accepted_total", modality, ""]
        outcomes = {o: values["alignserve_items_total", modality, o] for o in _OUTCOMES}
        return {"accepted": accepted, **outcomes}

    def watch_memory(self) -> MemoryWatch:
        """Starts to watch how much memory the process takes at the most."""
        return MemoryWatch(self._process.pid)

    async def embed_one_by_one(self, images: Iterable[bytes]) -> list[Outcome]:
        """Sends each image as a unary call, and returns the outcomes in order."""
        outcomes: dict[int, Outcome] = {}
        numbered = enumerate(images)

        async def caller() -> None:
            for number, content in numbered:
                outcomes[number] = await outcome_of(self.stub.EmbedImage(image_request(content)))

        await asyncio.gather(*(caller() for _ in range(_AT_ONCE)))
        return [outcomes[number] for number in sorted(outcomes)]

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

    def _read_metrics(self) -> dict[tuple[str, str, str], float]:
        """Returns the values of /metrics by name, modality and outcome."""
        url = f"http://127.0.0.1:{self._metrics_port}/metrics"
        with urllib.request.urlopen(url) as page:
            families = list(text_string_to_metric_families(page.read().decode()))
        return {
            (sample.name, sample.labels.get("modality", ""), sample.labels.get("outcome", "")): sample.value
            for family in families
            for sample in family.samples
        }


class MemoryWatch:
    """The growth of a process from now on. Linux keeps the peak, so that none is missed."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        (self._folder / "clear_refs").write_text("5")  # what is resident now becomes the peak
        self._before = self._peak()

    @property
    def growth(self) -> int:
        """Bytes that were resident at the peak, beyond those at the start."""
        return self._peak() - self._before

    def _peak(self) -> int:
        status = dict(
            line.split(":", 1) for line in (self._folder / "status").read_text().splitlines() if ":" in line
        )
        return int(status["VmHWM"].split()[0]) << 10


def stream_request(content: bytes) -> pb.StreamInferRequest:
    """Builds a stream's item for one image."""
    return pb.StreamInferRequest(
        embed_image=pb.EmbedImageRequest(images=[pb.Image(content=content)], embedding_options=PACKED)
    )


def _outcome_in(response: pb.StreamInferResponse) -> Outcome:
    if not response.HasField("error"):
        return OK
    code, _, reason, fields, *_ = read_status(response.error)
    (name,) = (each.name for each in grpc.StatusCode if each.value[0] == code)
    return Outcome(name, reason, tuple(fields))
