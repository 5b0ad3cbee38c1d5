"""Records the series of a real server over its lifetime, as realistic input for tests of alerts.

`python -m tests.deploy.recorded_series` runs a server that loads, serves, stalls, recovers, stalls again and
drains, scrapes its page over HTTP, and writes `recorded_series.json`. A test compares it with the series of
the current server.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from urllib.request import urlopen

import grpc
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.serving.server import Server
from alignserve_server.settings import Settings
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.serving import until

PATH = Path(__file__).with_suffix(".json")
PHASES = ("loading", "serving", "stalled", "recovered", "stalled again", "draining")
_SCRAPES = 3  # per phase
_OURS = ("alignserve_", "grpc_server_")
_VARYING = ("alignserve_event_loop_lag_seconds",)  # differs between runs, whatever the server does


@dataclass
class Recording:
    """Scrapes in order: the phase of each, and per series its value in each, None if it is missing."""

    phases: list[str] = field(default_factory=list)
    series: dict[str, list[float | None]] = field(default_factory=dict)

    def add(self, phase: str, page: Mapping[str, float]) -> None:
        """Adds a scrape."""
        for name in page:
            self.series.setdefault(name, [None] * len(self.phases))
        for name, values in self.series.items():
            values.append(page.get(name))
        self.phases.append(phase)

    def in_phase(self, phase: str) -> dict[str, float]:
        """Returns the last scrape of a phase."""
        last = max(number for number, each in enumerate(self.phases) if each == phase)
        return {name: value for name, values in self.series.items() if (value := values[last]) is not None}

    def promtool_series(
        self, scrapes: Mapping[str, int], labels: str, only: Sequence[str] = _OURS
    ) -> list[dict[str, str]]:
        """Returns `input_series` for promtool: the phases in order, each with the given length.

        The first and last scrape of a phase are kept, and the last is repeated; counters do not grow
        meanwhile.

        Args:
            scrapes: The number of scrapes per phase; 0 omits a phase.
            labels: Added to each series, such as `job="alignserve",instance="a:9464"`.
            only: Prefixes of the names to return.
        """
        numbers = [number for phase, count in scrapes.items() for number in self._stretched(phase, count)]
        return [
            {"series": _with_labels(name, labels), "values": _notation([values[n] for n in numbers])}
            for name, values in self.series.items()
            if name.startswith(tuple(only))
        ]

    def _stretched(self, phase: str, count: int) -> list[int]:
        numbers = [number for number, each in enumerate(self.phases) if each == phase]
        return [numbers[min(number, len(numbers) - 1)] for number in range(count)]


def read() -> Recording:
    """Returns the recording in `recorded_series.json`."""
    return Recording(**json.loads(PATH.read_text()))


async def record() -> Recording:
    """Runs a server through all phases, with a few calls in each, and scrapes it."""
    recording, encoder, loaded = Recording(), FakeEncoder(), threading.Event()
    server = Server(_settings(), lambda _: (loaded.wait(), encoder)[1])
    await server.start()
    loading = asyncio.ensure_future(server.load())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = pb_grpc.AlignServiceStub(channel)

        async def scrape(phase: str, call: Callable[[], Awaitable[object]]) -> None:
            for _ in range(_SCRAPES):
                recording.add(phase, await asyncio.to_thread(_page, server.metrics_port))
                await call()

        async def call() -> None:
            await asyncio.gather(*_calls(stub), return_exceptions=True)

        async def stall() -> None:
            encoder.gate.clear()
            stuck = asyncio.ensure_future(stub.EmbedText(pb.EmbedTextRequest(texts=["stuck"])))
            await until(lambda: server.state == "stalled")
            with suppress(grpc.aio.AioRpcError):
                await stuck

        await scrape("loading", call)
        loaded.set()
        await loading
        await until(lambda: server.metrics.event_loop_tasks.labels().value is not None)  # a first look
        await scrape("serving", call)
        await stall()
        await scrape("stalled", call)
        encoder.gate.set()
        await until(lambda: server.state == "serving")
        await scrape("recovered", call)
        await stall()
        await scrape("stalled again", lambda: asyncio.sleep(0))  # without calls
        encoder.gate.set()
        await until(lambda: server.state == "serving")
        draining = asyncio.ensure_future(server.drain(math.inf))
        await until(lambda: server.state == "draining")
        await scrape("draining", call)
        draining.cancel()
        await server.stop(1.0)
    return recording


def _settings() -> Settings:
    return Settings(
        checkpoint="fake",
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        lanes=1,
        max_client_batch_size=4,
        stall_timeout_seconds=0.1,
        stall_exit_seconds=0,
    )


def _calls(stub: pb_grpc.AlignServiceAsyncStub) -> Iterator[Awaitable[object]]:
    """Makes calls of each kind, single and batch, interactive and bulk; one is refused."""
    yield stub.EmbedText(pb.EmbedTextRequest(texts=["a cat"]))
    yield stub.EmbedText(
        pb.EmbedTextRequest(texts=["a", "b", "c"]), metadata=(("alignserve-priority", "bulk"),)
    )
    yield stub.EmbedImage(pb.EmbedImageRequest(images=[pb.Image(content=b"cat")]))
    yield stub.EmbedText(pb.EmbedTextRequest(texts=["too", "many", "for", "this", "server"]))


def _page(port: int) -> dict[str, float]:
    """Returns the values of the page, by name and labels in promtool's notation."""
    with urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        text = response.read().decode()
    return {
        _written(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(_OURS) and sample.name not in _VARYING
    }


def _written(name: str, labels: Mapping[str, str]) -> str:
    inner = ",".join(f"{label}={json.dumps(value)}" for label, value in labels.items())
    return f"{name}{{{inner}}}"


def _with_labels(name: str, labels: str) -> str:
    head, _, inner = name.removesuffix("}").partition("{")
    return f"{head}{{{','.join(filter(None, (inner, labels)))}}}"


def _notation(values: Sequence[float | None]) -> str:
    """Returns values in promtool's notation: `1x4` is five times 1, `_` a missing value."""
    words = ("_" if value is None else f"{value:g}" for value in values)
    runs = ((word, len(list(run))) for word, run in groupby(words))
    return " ".join(_repeated(word, length) for word, length in runs)


def _repeated(word: str, length: int) -> str:
    if word == "_":
        return f"_x{length}"
    return word if length == 1 else f"{word}x{length - 1}"


if __name__ == "__main__":
    recording = asyncio.run(record())
    lines = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in sorted(recording.series.items())
    )
    PATH.write_text(f'{{"phases": {json.dumps(recording.phases)},\n"series": {{\n{lines}\n}}}}\n')
