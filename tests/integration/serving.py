"""A real server on port 0 in the test's event loop, with a fake encoder, and a channel to it.

It has one of two shapes: its own model, or a device that it reaches over the transport of front processes.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from alignserve_server.access.usage import Usages
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.serving.device_process import Device
from alignserve_server.serving.front_server import FrontServer
from alignserve_server.serving.server import CallServer, Server
from alignserve_server.settings import Settings
from google.rpc import error_details_pb2, status_pb2
from prometheus_client.parser import text_string_to_metric_families

from tests.processes import socket_folder


async def until(condition: Callable[[], object | Awaitable[object]]) -> None:
    """Runs the event loop until a condition holds, for conditions without an event to await."""
    while not (await met if isinstance(met := condition(), Awaitable) else met):
        await asyncio.sleep(0.002)


WHOLE, FRONTS = "whole", "fronts"
shape = WHOLE  # of the servers that `running` starts; see the fixture `shape`


@dataclass
class RunningServer:
    """A server that is ready, with its encoder and a client."""

    server: CallServer
    encoder: FakeEncoder
    channel: grpc.aio.Channel
    stub: pb_grpc.AlignServiceAsyncStub
    device: Device | None = None  # if the model is not the server's own

    def sample(self, name: str, **labels: str) -> float:
        """Returns one value of /metrics; 0 if it is not there yet."""
        parts = [self.server.metrics] if self.device is None else [self.server.metrics, self.device.metrics]
        return next(filter(None, (part.registry.get_sample_value(name, labels) for part in parts)), 0.0)

    def items(self, modality: str) -> dict[str, float]:
        """Returns a modality's item counts: accepted, in_flight, and each outcome."""
        outcomes = ("ok", "failed", "cancelled", "expired")
        return {
            "accepted": self.sample("alignserve_items_accepted_total", modality=modality),
            "in_flight": self.sample("alignserve_items_in_flight", modality=modality),
            **{o: self.sample("alignserve_items_total", modality=modality, outcome=o) for o in outcomes},
        }

    def waiting(self, modality: str) -> float:
        """Returns how many entries wait in a queue."""
        return self.sample("alignserve_queue_entries", modality=modality)


def settings(**overrides: Any) -> Settings:
    """Builds settings for a test: free ports, no drain delay."""
    values = {
        "listen": "127.0.0.1:0",
        "metrics_listen": "127.0.0.1:0",
        "drain_delay_seconds": 0.0,
        "shutdown_grace_seconds": 5.0,
        "lanes": 1,
    }
    return Settings(**{**values, **overrides})


@asynccontextmanager
async def running(encoder: FakeEncoder | None = None, **overrides: Any) -> AsyncIterator[RunningServer]:
    """Runs a server for the length of the block."""
    encoder = encoder or FakeEncoder()
    async with AsyncExitStack() as life:
        device: Device | None = None
        server: CallServer = Server(settings(**overrides), lambda _: encoder)
        if shape == FRONTS:
            device, path = await life.enter_async_context(running_device(encoder, **overrides))
            server = front(encoder, path, **overrides)
        await server.start()
        await server.load()
        encoder.batches.clear()  # those of the warm-up
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            try:
                yield RunningServer(server, encoder, channel, pb_grpc.AlignServiceStub(channel), device)
            finally:
                encoder.gate.set()
                await server.drain(0.0)
                await server.stop(5.0)


def front(encoder: FakeEncoder, path: str, usages: Usages | None = None, **overrides: Any) -> FrontServer:
    """Returns a front that prepares inputs as the encoder does, for the device at a path."""
    return FrontServer(settings(**overrides), path, usages=usages, load_reader=lambda *_: encoder)


@asynccontextmanager
async def running_device(
    encoder: FakeEncoder, path: str | None = None, **overrides: Any
) -> AsyncIterator[tuple[Device, str]]:
    """Runs a device for the length of the block; also yields the path of its socket, by default a new one."""
    is_ready = asyncio.Event()
    with socket_folder() as folder:
        path = path or f"{folder}/device"

        def announce(event: str, **_: object) -> None:
            if event == "ready":
                is_ready.set()

        device = Device(settings(**overrides), lambda _: encoder, path, announce, lambda _: None)
        serving = asyncio.ensure_future(device.run())
        await asyncio.wait(
            [serving, asyncio.ensure_future(is_ready.wait())], return_when=asyncio.FIRST_COMPLETED
        )
        try:
            yield device, path
        finally:
            serving.cancel()
            await asyncio.wait([serving])
            await device.stop(5.0)


_SERVER_WITH_ENCODER = """
import sys, threading
from alignserve_server.cli.main import main
from alignserve_server.serving import loading
from alignserve_server.model.fake import FakeEncoder

def get_stuck():
    sys.stderr.write('{{"event": "stuck"}}\\n')  # one write, for other threads log too
    sys.stderr.flush()
    threading.Event().wait()

class Encoder(FakeEncoder):
    {body}

loading.load_encoder = lambda settings: Encoder()
if not {warms_up}:
    loading.warm_up = lambda encoder: None
main()
"""


class ServerProcess:
    """A server in its own process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.port = 0

    async def event(self, name: str) -> dict[str, Any]:
        """Reads the log up to an event and returns it."""
        return (await self.events(name))[-1]

    async def events(self, last: str) -> list[dict[str, Any]]:
        """Reads the log up to an event and returns all events that it read."""
        assert self.process.stderr is not None
        events: list[dict[str, Any]] = []
        while line := await self.process.stderr.readline():
            if not line.startswith(b"{"):  # libraries warn in plain text
                continue
            events.append(json.loads(line))
            self.port = events[-1].get("port", self.port)
            if events[-1]["event"] == last:
                return events
        raise AssertionError(f"the server ended before {last!r}")

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and returns the exit code."""
        self.process.send_signal(number)
        return await self.wait()

    async def wait(self) -> int:
        """Waits for the end and returns the exit code."""
        await self.process.communicate()  # also reads the log, so that it cannot fill the pipe
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def server_process(
    *flags: str, encoder: str | None = None, warms_up: bool = True
) -> AsyncIterator[ServerProcess]:
    """Runs alignserve-server for the length of the block.

    Args:
        flags: The flags of `alignserve-server`.
        encoder: The body of a subclass of `FakeEncoder`; `get_stuck()` in it logs `stuck` and never returns.
        warms_up: Whether the encoder is warmed up before the server is ready.
    """
    command = [str(Path(sys.executable).parent / "alignserve-server"), "--checkpoint", "fake"]
    if encoder is not None:
        command = [sys.executable, "-c", _SERVER_WITH_ENCODER.format(body=encoder, warms_up=warms_up)]
    process = await asyncio.create_subprocess_exec(
        *command,
        *("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--log-format", "json", *flags),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield ServerProcess(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


Page = dict[tuple[str, str | None], float]


async def metrics_page(port: int) -> Page:
    """Returns /metrics of a server with several processes, summed by name and worker."""

    def read() -> str:
        with urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            return response.read().decode()

    page: Page = {}
    for family in text_string_to_metric_families(await asyncio.to_thread(read)):
        for sample in family.samples:
            key = sample.name, sample.labels.get("worker")
            page[key] = page.get(key, 0.0) + sample.value
    return page


def connect(port: int) -> grpc.aio.Channel:
    """Makes a channel with its own connection; by default, channels to one address share one."""
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)])


def image_request(*contents: bytes, **fields: Any) -> pb.EmbedImageRequest:
    """Builds a request for packed embeddings of images."""
    return pb.EmbedImageRequest(
        images=[pb.Image(content=content) for content in contents], embedding_options=PACKED, **fields
    )


def text_request(*texts: str, **fields: Any) -> pb.EmbedTextRequest:
    """Builds a request for packed embeddings of texts."""
    return pb.EmbedTextRequest(texts=texts, embedding_options=PACKED, **fields)


def classify_request(content: bytes, *labels: str, **fields: Any) -> pb.ClassifyRequest:
    """Builds a request to classify one image."""
    return pb.ClassifyRequest(images=[pb.Image(content=content)], labels=labels, **fields)


PACKED = pb.EmbeddingOptions(format=pb.EMBEDDING_FORMAT_PACKED_FLOAT32)


@dataclass(frozen=True)
class Refusal:
    """The error that the caller of a failed call received."""

    code: grpc.StatusCode
    message: str
    reason: str
    fields: list[str]
    retry_delay_seconds: float | None
    metadata: dict[str, str]
    trailers: dict[str, Any]


async def refused(call: Any) -> Refusal:
    """Awaits a call that must fail, and reads its status."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return refusal_of(caught.value)


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """Reads the rich status of a failed call."""
    trailers = dict(iter(error.trailing_metadata() or ()))
    status = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))
    refusal = read_status(status)
    return Refusal(error.code(), error.details() or "", *refusal[2:6], trailers)


def read_status(
    status: status_pb2.Status,
) -> tuple[int, str, str, list[str], float | None, dict[str, str]]:
    """Reads a google.rpc.Status: code, message, reason, fields, retry delay, metadata."""
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), None
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
        delay = error_details_pb2.RetryInfo()
        if detail.Unpack(delay):
            retry = delay.retry_delay.ToMilliseconds() / 1000
    fields = [violation.field for violation in bad.field_violations]
    return status.code, status.message, info.reason, fields, retry, dict(info.metadata)
