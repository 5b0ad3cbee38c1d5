"""A day of three servers in a few minutes: traffic follows the hours, and at 14:00 one device hangs."""

from __future__ import annotations

import asyncio
import json
import math
import random
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

from tests.deploy.faulty_server import HANG
from tests.deploy.prometheus import Prometheus, named_targets, running_prometheus
from tests.deploy.scenes import Replica
from tests.processes import BIN

HOURS = 24

_INCIDENT_HOUR, _RESTART_HOUR = 14.0, 14.6  # an operator restarts the server
_QUIET, _BUSY = 6.0, 40.0  # calls per second at night and at noon
_BATCH_SECONDS, _ENTRY_SECONDS = 0.008, 0.004
_NAMES = ("align-0", "align-1", "align-2")
_CALLERS = {"search": 0.6, "shop": 0.33, "index": 0.07}  # share of calls; the last sends 16 texts, as bulk
_MISTAKES = 0.004  # share of calls with an empty text
_SETTLE_SECONDS = 6.0
_STALL_SECONDS = 2.0  # a busy machine could cause a shorter one
_SPREAD = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": "alignserve.v1.AlignService"},
        "methodConfig": [
            {
                "name": [{"service": "alignserve.v1.AlignService"}],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.02s",
                    "maxBackoff": "0.2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
)


@contextmanager
def running_day(folder: Path, place: Path, seconds: float) -> Iterator[Prometheus]:
    """Runs servers, their callers and a Prometheus for the length of the block; the day lasts `seconds`.

    The times in the rules are compressed like the day.
    """
    speedup = round(HOURS * 3600 / seconds)
    keys = _keys(place)
    settings = {
        "api_keys_file": str(place / "keys.json"),
        "stall_timeout_seconds": _STALL_SECONDS,
        "stall_exit_seconds": 0,
    }
    replicas = [
        Replica(batch_seconds=_BATCH_SECONDS, entry_seconds=_ENTRY_SECONDS, settings=settings) for _ in _NAMES
    ]
    with ExitStack() as life:
        for replica in replicas:
            replica.start()
            life.callback(replica.kill)
        for replica in replicas:
            while not replica.answers("readyz"):
                threading.Event().wait(0.1)
        targets = dict(zip(_NAMES, (replica.metrics_port for replica in replicas), strict=True))
        prometheus = life.enter_context(
            running_prometheus(folder, named_targets(targets), place, speedup=speedup)
        )
        is_over = threading.Event()
        day = threading.Thread(target=asyncio.run, args=(_Day(replicas, keys, seconds, is_over).run(),))
        day.start()
        life.callback(day.join)
        life.callback(is_over.set)
        threading.Event().wait(_SETTLE_SECONDS)
        yield prometheus


class _Day:
    """The day's callers and its incident."""

    def __init__(
        self, replicas: list[Replica], keys: dict[str, str], seconds: float, is_over: threading.Event
    ) -> None:
        self._replicas = replicas
        self._keys = keys
        self._seconds = seconds
        self._is_over = is_over
        self._chance = random.Random(0)
        self._calls: set[asyncio.Task[None]] = set()
        self._count = 0

    async def run(self) -> None:
        """Sends calls until the day is over."""
        addresses = ",".join(f"127.0.0.1:{replica.port}" for replica in self._replicas)
        options = (("grpc.service_config", _SPREAD), ("grpc.max_reconnect_backoff_ms", 500))
        incident = asyncio.ensure_future(self._incident())
        async with grpc.aio.insecure_channel(f"ipv4:{addresses}", options=options) as channel:
            stub = pb_grpc.AlignServiceStub(channel)
            began = asyncio.get_running_loop().time()
            while not self._is_over.is_set():
                hour = HOURS * (asyncio.get_running_loop().time() - began - _SETTLE_SECONDS) / self._seconds
                self._begin_call(stub)
                await asyncio.sleep(self._chance.expovariate(_calls_per_second(hour)))
            if self._calls:
                await asyncio.wait(self._calls)
        incident.cancel()

    async def _incident(self) -> None:
        """Makes a device hang, and restarts its server later."""
        await asyncio.sleep(_SETTLE_SECONDS + self._seconds * _INCIDENT_HOUR / HOURS)
        broken = self._replicas[1]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{broken.port}") as channel:
            metadata = (("authorization", f"Bearer {self._keys['search']}"),)
            with suppress(grpc.aio.AioRpcError):
                await pb_grpc.AlignServiceStub(channel).EmbedText(
                    pb.EmbedTextRequest(texts=[HANG]), metadata=metadata
                )
        await asyncio.sleep(self._seconds * (_RESTART_HOUR - _INCIDENT_HOUR) / HOURS)
        broken.kill()
        broken.start()

    def _begin_call(self, stub: pb_grpc.AlignServiceAsyncStub) -> None:
        call = asyncio.ensure_future(self._call(stub))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _call(self, stub: pb_grpc.AlignServiceAsyncStub) -> None:
        self._count += 1
        (caller,) = self._chance.choices(list(_CALLERS), list(_CALLERS.values()))
        priority = "bulk" if caller == "index" else "interactive"
        metadata = (
            ("authorization", f"Bearer {self._keys[caller]}"),
            ("alignserve-priority", priority),
        )
        method, request = self._request(stub, caller)
        with suppress(grpc.aio.AioRpcError):
            await method(request, metadata=metadata, timeout=10)

    def _request(self, stub: pb_grpc.AlignServiceAsyncStub, caller: str):
        text = f"a photo of number {self._count}"
        if caller == "index":
            return stub.EmbedText, pb.EmbedTextRequest(texts=[f"{text}, {item}" for item in range(16)])
        if self._chance.random() < _MISTAKES:
            return stub.EmbedText, pb.EmbedTextRequest(texts=[""])
        if caller == "shop":
            image = pb.Image(content=text.encode())
            if self._chance.random() < 0.5:
                return stub.Classify, pb.ClassifyRequest(images=[image], labels=["a shoe", "a hat"])
            return stub.EmbedImage, pb.EmbedImageRequest(images=[image])
        return stub.EmbedText, pb.EmbedTextRequest(texts=[text])


def _calls_per_second(hour: float) -> float:
    """Returns the call rate: lowest at four in the morning, highest in the afternoon."""
    return _QUIET + (_BUSY - _QUIET) * (0.5 - 0.5 * math.cos(2 * math.pi * (hour - 4) / HOURS)) ** 1.5


def _keys(place: Path) -> dict[str, str]:
    """Makes a key for each caller, and returns them by name."""
    made = {}
    for caller in _CALLERS:
        keys = ("keys", "--api-keys-file", str(place / "keys.json"))
        command = [str(BIN / "alignserve-server"), *keys, "add", caller]
        done = subprocess.run(
            [*command, "--scopes", "embed,classify"], capture_output=True, text=True, check=True
        )
        made[caller] = done.stdout.strip()
    return made
