"""The scenes of `live_alerts`: faults of servers, and the alerts that each must fire."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

from tests.deploy.faulty_server import FAIL, HANG, HANG_FOR_A_WHILE
from tests.processes import ROOT, free_port

SPEEDUP = 30
MINUTE = 60 / SPEEDUP  # in seconds
_NOTICED_SECONDS = 6.0  # Prometheus rereads its targets every 5 s
_PAUSE_SECONDS = 0.1  # between two calls of a caller
# The defaults of these settings.
_SCALED = {
    "stall_timeout_seconds": 60 / SPEEDUP,
    "stall_exit_seconds": 300 / SPEEDUP,
    "text_cache_bytes": 0,  # not the default: each call must reach the device
}
_RECONNECTS = (("grpc.max_reconnect_backoff_ms", 500),)


class Replica:
    """A server of a scene, which can die and be restarted at the same address."""

    def __init__(self, **told: Any) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        addresses = {
            "listen": f"127.0.0.1:{self.port}",
            "metrics_listen": f"127.0.0.1:{self.metrics_port}",
            "drain_delay_seconds": 0,
        }
        self._told = {**told, "settings": {**_SCALED, **addresses, **told.get("settings", {})}}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the server unless it runs."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.deploy.faulty_server", json.dumps(self._told)],
                cwd=ROOT,
                stderr=subprocess.DEVNULL,
            )

    def answers(self, path: str) -> bool:
        """Returns whether its page for probes answers 200."""
        try:
            with urlopen(f"http://127.0.0.1:{self.metrics_port}/{path}", timeout=5):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        """Kills the server."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def ended(self) -> int:
        """Waits until the server exits by itself, and returns its exit code."""
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait)


@dataclass
class Stage:
    """The state of a scene: its replicas, their callers, and the times of its events."""

    namespace: str
    targets: Path
    replicas: list[Replica] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)
    began: float = 0.0
    end: float = 0.0

    def note(self, event: str) -> None:
        """Records that an event happens now; its text ends with 'at' or 'from'."""
        self.begin()
        self.events.append((time.time(), event))

    async def scrape(self, *ports: int) -> None:
        """Sets the targets of Prometheus in this namespace, and waits until it scrapes them."""
        self.tell(*ports)
        await asyncio.sleep(_NOTICED_SECONDS)

    def tell(self, *ports: int) -> None:
        """Sets the targets of Prometheus in this namespace."""
        groups = [
            {
                "targets": [f"127.0.0.1:{port}"],
                "labels": {"namespace": self.namespace, "pod": f"{self.namespace}-{number}"},
            }
            for number, port in enumerate(ports)
        ]
        draft = self.targets.with_suffix(".draft")
        draft.write_text(json.dumps(groups))
        draft.replace(self.targets)

    @property
    def minutes(self) -> int:
        """The duration of the scene."""
        return int((self.end - self.began) / MINUTE)

    async def replica(self, **told: Any) -> Replica:
        """Starts another replica, which is scraped from now on."""
        replica = Replica(**told)
        self.replicas.append(replica)
        replica.start()
        while not await asyncio.to_thread(replica.answers, "healthz"):
            await asyncio.sleep(_PAUSE_SECONDS)
        await self.scrape(*(each.metrics_port for each in self.replicas))
        return replica

    async def ready(self, replica: Replica) -> None:
        """Waits until a replica is ready for calls."""
        while not await asyncio.to_thread(replica.answers, "readyz"):
            await asyncio.sleep(_PAUSE_SECONDS)
        self.begin()

    def begin(self) -> None:
        """Records now as the start of the scene, unless it has started."""
        self.began = self.began or time.time()


Play = Callable[[Stage], Awaitable[None]]


@dataclass(frozen=True)
class Scene:
    """The events in a namespace, and exactly the alerts that must fire there."""

    play: Play
    alerts: frozenset[str]

    @property
    def name(self) -> str:
        return self.play.__name__.strip("_").replace("_", "-")

    @property
    def about(self) -> str:
        return " ".join((self.play.__doc__ or "").split())


SCENES: list[Scene] = []


def _scene(*alerts: str) -> Callable[[Play], Play]:
    def add(play: Play) -> Play:
        SCENES.append(Scene(play, frozenset(f"Alignserve{alert}" for alert in alerts)))
        return play

    return add


@_scene()
async def _production(stage: Stage) -> None:
    """Two replicas serve single texts throughout."""
    replicas = [await stage.replica(batch_seconds=0.02), await stage.replica(batch_seconds=0.02)]
    await asyncio.gather(*(stage.ready(each) for each in replicas))
    await asyncio.gather(*(_keep_calling(each, "a photo") for each in replicas))


@_scene("ErrorBudgetBurn", "ItemsFailing")
async def _staging(stage: Stage) -> None:
    """Every fourth call fails, in the same job but another namespace."""
    replica = await stage.replica()
    await stage.ready(replica)
    stage.note("fails at")
    await _keep_calling(replica, "a photo", "a cat", "a dog", FAIL)


@_scene("LatencyBudgetBurn")
async def _slow(stage: Stage) -> None:
    """A single text takes 0.7 s."""
    replica = await stage.replica(batch_seconds=0.7)
    await stage.ready(replica)
    stage.note("slow from")
    await _keep_calling(replica, "a photo")


@_scene()
async def _bulk(stage: Stage) -> None:
    """A job with priority `bulk` embeds 32 texts per call, which also takes 0.7 s."""
    replica = await stage.replica(batch_seconds=0.7)
    await stage.ready(replica)
    await _keep_calling(replica, "a photo", items=32, priority="bulk", pause=0.3)


@_scene("NotReady")
async def _loading(stage: Stage) -> None:
    """A first start takes 15 minutes before it serves."""
    replica = await stage.replica(load_seconds=15 * MINUTE)
    stage.note("scraped from")
    await stage.ready(replica)
    stage.note("serves at")
    await _keep_calling(replica, "a photo")


@_scene("NotReady")
async def _never_ready(stage: Stage) -> None:
    """A start that never ends is killed and repeated every 10 minutes, as by a startup probe."""
    replica = await stage.replica(load_seconds=1e6)
    stage.note("scraped from")
    while True:
        await asyncio.sleep(10 * MINUTE)
        replica.kill()
        replica.start()


@_scene("Stalled", "ErrorBudgetBurn")
async def _stalled_called(stage: Stage) -> None:
    """The device hangs while callers continue; after 5 minutes the process exits with code 3 and is
    restarted."""
    replica = await stage.replica()
    await stage.ready(replica)
    calling = asyncio.ensure_future(_keep_calling(replica, "a photo"))
    await asyncio.sleep(5 * MINUTE)
    stage.note("hangs at")
    hanging = asyncio.ensure_future(_call(replica, HANG))
    code = await replica.ended()
    stage.note("exits at" if code == 3 else f"exits with {code} at")
    replica.start()
    await asyncio.gather(calling, hanging)


@_scene("Stalled", "ErrorBudgetBurn", "LatencyBudgetBurn")
async def _stalled_idle(stage: Stage) -> None:
    """The device hangs at one call, no more calls arrive, and `stall_exit_seconds` is 0."""
    replica = await stage.replica(settings={"stall_exit_seconds": 0})
    await stage.ready(replica)
    await asyncio.sleep(2 * MINUTE)
    stage.note("hangs at")
    await _call(replica, HANG)


@_scene("Stalled", "ErrorBudgetBurn", "LatencyBudgetBurn", "ItemsFailing")
async def _stalling_again_and_again(stage: Stage) -> None:
    """The device hangs for 100 s of every 2 minutes, so no stall lasts a whole minute."""
    replica = await stage.replica()
    await stage.ready(replica)
    stage.note("hangs from")
    while True:
        await _call(replica, HANG_FOR_A_WHILE.format(round(10 * 100 / SPEEDUP)))
        await asyncio.sleep(20 / SPEEDUP)


@_scene("TargetDown")
async def _dead(stage: Stage) -> None:
    """A server is killed and not restarted."""
    replica = await stage.replica()
    await stage.ready(replica)
    await asyncio.sleep(2 * MINUTE)
    stage.note("dies at")
    replica.kill()


@_scene("Vanished")
async def _vanished(stage: Stage) -> None:
    """A server is stopped and removed from Prometheus's targets, as when a deployment is scaled to 0."""
    replica = await stage.replica()
    await stage.ready(replica)
    await asyncio.sleep(3 * MINUTE)
    stage.note("vanishes at")
    await stage.scrape()
    replica.kill()


@_scene("Restarting")
async def _restarting(stage: Stage) -> None:
    """A server dies every 5 minutes and is restarted at once."""
    replica = await stage.replica()
    await stage.ready(replica)
    stage.note("first dies at")
    while True:
        replica.kill()
        replica.start()
        await asyncio.sleep(5 * MINUTE)


@_scene("Refusing")
async def _refusing(stage: Stage) -> None:
    """Twelve callers, and space for four."""
    replica = await stage.replica(
        batch_seconds=0.05, settings={"max_queue_size": 4, "max_client_batch_size": 4}
    )
    await stage.ready(replica)
    stage.note("full from")
    await asyncio.gather(*(_keep_calling(replica, "a photo") for _ in range(12)))


@_scene("NotReady")
async def _something_else(stage: Stage) -> None:
    """Another program answers at the metrics port."""
    folder = stage.targets.with_suffix(".page")
    folder.mkdir()
    (folder / "metrics").write_text("other_metric 1\n")
    port = free_port()
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    await stage.scrape(port)
    stage.note("scraped from")
    try:
        await server.wait()
    finally:
        with suppress(ProcessLookupError):
            server.kill()


async def _call(replica: Replica, text: str) -> str:
    """Embeds a text, and returns the status code of the call."""
    async with _stub(replica) as stub:
        return await _send(stub, [text], "interactive")


async def _keep_calling(
    replica: Replica,
    *texts: str,
    items: int = 1,
    priority: str = "interactive",
    pause: float = _PAUSE_SECONDS,
) -> None:
    """Sends calls until cancelled, each with a new text, because equal texts would share a place."""
    async with _stub(replica) as stub:
        for number, text in enumerate(itertools.cycle(texts)):
            called = (
                [text] if text == FAIL else [f"{text} {number} {item} {id(stub)}" for item in range(items)]
            )
            await _send(stub, called, priority)
            await asyncio.sleep(pause)


@asynccontextmanager
async def _stub(replica: Replica) -> AsyncIterator[pb_grpc.AlignServiceAsyncStub]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{replica.port}", options=_RECONNECTS) as channel:
        yield pb_grpc.AlignServiceStub(channel)


async def _send(stub: pb_grpc.AlignServiceAsyncStub, texts: Sequence[str], priority: str) -> str:
    try:
        await stub.EmbedText(
            pb.EmbedTextRequest(texts=texts), metadata=(("alignserve-priority", priority),), timeout=30
        )
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"
