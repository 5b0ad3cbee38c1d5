"""A device process and its fronts: what callers see when they are killed, and one page of metrics."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
from alignserve import AsyncClient, RetryPolicy
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from alignserve_server.model.fake import FakeEncoder
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.integration.serving import (
    Page,
    ServerProcess,
    connect,
    metrics_page,
    server_process,
    text_request,
    until,
)

NAMES = ("device", "front-0", "front-1")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass
class Processes:
    """A server with a device process and two fronts that is ready."""

    server: ServerProcess
    metrics_port: int
    pids: dict[str, int]  # by name

    async def page(self) -> Page:
        """Returns /metrics, summed by name and process."""
        return await metrics_page(self.metrics_port)

    async def counts(self, name: str) -> list[float]:
        """Returns a metric of each process, in the order of `NAMES`; 0 where it is missing."""
        page = await self.page()
        return [page.get((name, worker), 0.0) for worker in NAMES]


@asynccontextmanager
async def processes(*flags: str) -> AsyncIterator[Processes]:
    """Runs a device process and two fronts for the length of the block."""
    async with server_process("--front-processes", "2", "--drain-delay-seconds", "0", *flags) as server:
        events = await server.events("ready")
        (listening,) = [event for event in events if event["event"] == "listening"]
        pids = {event["worker"]: event["pid"] for event in events if event["event"] == "worker_ready"}
        yield Processes(server, listening["metrics_port"], pids)


@pytest.fixture
async def running() -> AsyncIterator[Processes]:
    """A device process and two fronts with the fake encoder."""
    async with processes() as running:
        yield running


@dataclass
class Load:
    """Callers who never get the same text twice, and repeat what is UNAVAILABLE."""

    port: int
    answered: list[tuple[str, np.ndarray]] = field(default_factory=list)

    @asynccontextmanager
    async def callers(self, count: int = 8) -> AsyncIterator[None]:
        """Calls for the length of the block, each caller by a connection of its own."""
        stopping = asyncio.Event()
        tasks = [asyncio.ensure_future(self._call(number, stopping)) for number in range(count)]
        yield
        stopping.set()
        await asyncio.gather(*tasks)

    async def more(self, answers: int) -> None:
        """Returns when that many more answers have come."""
        goal = len(self.answered) + answers
        await until(lambda: len(self.answered) >= goal)

    def check(self) -> None:
        """Checks that no text was answered twice, and each with its own embedding."""
        texts = [text for text, _ in self.answered]
        assert len(set(texts)) == len(texts)
        dimension = len(self.answered[0][1])
        expected = FakeEncoder(dimension, is_recording=False)
        for text, embedding in self.answered:
            np.testing.assert_allclose(embedding, expected.embedding_of(text), atol=1e-6)

    async def _call(self, caller: int, stopping: asyncio.Event) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        patient = RetryPolicy(max_attempts=100)
        target = f"127.0.0.1:{self.port}"
        async with AsyncClient(target, retry=patient, timeout_seconds=60.0, options=options) as client:
            number = 0
            while not stopping.is_set():
                text = f"{caller} {number}"
                self.answered.append((text, await client.embed_text(text)))
                number += 1


async def _until_ready(running: Processes, name: str) -> int:
    """Waits until a process is ready again; returns its id."""
    event = await running.server.event("worker_ready")
    assert event["worker"] == name
    pid: int = event["pid"]
    return pid


async def test_a_device_that_is_killed_costs_no_answer(running: Processes) -> None:
    """Fronts stay: they report NOT_SERVING until they have reached the next device, and then serve again."""
    load = Load(running.server.port)
    async with connect(running.server.port) as channel, load.callers():
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        seen = [(await watch.read()).status]
        await load.more(200)

        os.kill(running.pids["device"], signal.SIGKILL)
        seen.append((await watch.read()).status)
        died = await running.server.event("worker_died")
        pid = await _until_ready(running, "device")
        seen.append((await watch.read()).status)
        await load.more(200)
        watch.cancel()

    load.check()
    assert (died["worker"], died["exit_code"]) == ("device", -signal.SIGKILL)
    assert pid != running.pids["device"]
    assert seen == [SERVING, NOT_SERVING, SERVING]
    assert await running.counts("alignserve_worker_restarts_total") == [1, 0, 0]
    assert await running.counts("alignserve_worker_up") == [1, 1, 1]


async def test_a_front_that_is_killed_costs_no_answer(running: Processes) -> None:
    """Its callers repeat their calls at the other one; the device keeps nothing of what it held."""
    load = Load(running.server.port)
    async with load.callers():
        await load.more(200)

        os.kill(running.pids["front-0"], signal.SIGKILL)
        died = await running.server.event("worker_died")
        await _until_ready(running, "front-0")
        await load.more(200)

    load.check()
    assert (died["worker"], died["exit_code"]) == ("front-0", -signal.SIGKILL)
    assert await running.counts("alignserve_worker_restarts_total") == [0, 1, 0]
    assert await running.counts("alignserve_caller_waiting_items") == [0, 0, 0]
    assert await running.counts("alignserve_queue_entries") == [0, 0, 0]


@pytest.mark.long
async def test_a_stream_outlives_the_device(running: Processes) -> None:
    """Each item is answered once: with its embedding, or UNAVAILABLE while there is no device."""
    sent: list[str] = []
    answers: dict[str, list[pb.StreamInferResponse]] = {}
    window, stopping = asyncio.Semaphore(32), asyncio.Event()

    async def send() -> AsyncIterator[pb.StreamInferRequest]:
        while not stopping.is_set():
            await window.acquire()
            text = f"text {len(sent)}"
            sent.append(text)
            yield pb.StreamInferRequest(correlation_id=text, embed_text=text_request(text))

    async def receive(channel: grpc.aio.Channel) -> None:
        async for answer in pb_grpc.AlignServiceStub(channel).StreamInfer(send()):
            answers.setdefault(answer.correlation_id, []).append(answer)
            window.release()

    def embedded() -> int:
        return sum(answer.HasField("embed_text") for (answer, *_) in answers.values())

    async with connect(running.server.port) as channel:
        receiving = asyncio.ensure_future(receive(channel))
        await until(lambda: embedded() >= 200)
        os.kill(running.pids["device"], signal.SIGKILL)
        await _until_ready(running, "device")
        goal = embedded() + 200
        await until(lambda: embedded() >= goal)
        stopping.set()
        await receiving

    assert sorted(answers) == sorted(sent)
    assert {len(each) for each in answers.values()} == {1}
    failed = {answer.error.code for (answer, *_) in answers.values() if answer.HasField("error")}
    assert failed == {grpc.StatusCode.UNAVAILABLE.value[0]}
    encoder = FakeEncoder(640, is_recording=False)
    for text, (answer, *_) in answers.items():
        if answer.HasField("embed_text"):
            found = np.frombuffer(answer.embed_text.embeddings[0].packed_float32, "<f4")
            np.testing.assert_allclose(found, encoder.embedding_of(text), atol=1e-6)


@pytest.mark.long
async def test_no_series_is_missing(running: Processes) -> None:
    """All that one process shows is there, also after a front has restarted, and nothing twice."""
    async with server_process("--drain-delay-seconds", "0") as whole:
        (listening,) = [event for event in await whole.events("ready") if event["event"] == "listening"]
        for port in (whole.port, running.server.port):
            async with connect(port) as channel:
                await pb_grpc.AlignServiceStub(channel).EmbedText(text_request("a text"))
        os.kill(running.pids["front-0"], signal.SIGKILL)
        await _until_ready(running, "front-0")

        series_of_one = await _series(listening["metrics_port"])
        series = await _series(running.metrics_port)

    assert set(map(_of_one, series_of_one)) <= set(map(_of_one, series))
    assert len(set(series)) == len(series)


async def test_one_page_has_every_series_once(running: Processes) -> None:
    """Calls are counted by fronts, batches by the device, and the supervisor adds which processes are up."""
    load = Load(running.server.port)
    async with load.callers():
        await load.more(50)
    await until(lambda: _all_counted(running, len(load.answered)))

    page = await running.page()
    of = {name: {worker for series, worker in page if series == name} for name, _ in page}

    fronts, everyone = {"front-0", "front-1"}, set(NAMES)
    for name in ("grpc_server_handled_total", "alignserve_items_total", "alignserve_state"):
        assert of[name] == fronts
    for name in ("alignserve_queue_entries", "alignserve_batch_size_count", "alignserve_lanes"):
        assert of[name] == {"device"}
    assert of["alignserve_worker_up"] == everyone
    assert of["process_resident_memory_bytes"] == everyone
    assert of["alignserve_log_lines_dropped_total"] == {*everyone, "supervisor"}
    assert page["alignserve_batch_size_sum", "device"] == len(load.answered)


async def _series(port: int) -> list[str]:
    """Returns the name and the labels of each series of /metrics."""

    def read() -> str:
        with urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            return response.read().decode()

    lines = (await asyncio.to_thread(read)).splitlines()
    return [line.rpartition(" ")[0] for line in lines if line and line[0] != "#"]


def _of_one(series: str) -> tuple[str, tuple[str, ...]]:
    """Returns a series without the label `worker`."""
    name, _, labels = series.rstrip("}").partition("{")
    return name, tuple(sorted(label for label in labels.split(",") if label and "worker=" not in label))


async def _all_counted(running: Processes, calls: int) -> bool:
    return sum(await running.counts("grpc_server_handled_total")) == calls


@pytest.mark.long
async def test_everything_ends_when_the_supervisor_is_killed(running: Processes) -> None:
    """The fronts drain, and then the device stops."""
    running.server.process.kill()

    for _ in NAMES:
        await running.server.event("stopped")
    await running.server.wait()  # until the log ends, which every process holds open


@pytest.mark.long
async def test_a_device_that_ends_by_itself_is_replaced_alone(running: Processes) -> None:
    """The fronts stay connected, and it waits for them until a second signal comes."""
    os.kill(running.pids["device"], signal.SIGTERM)
    await running.server.event("draining")
    os.kill(running.pids["device"], signal.SIGTERM)
    died = await running.server.event("worker_died")
    await _until_ready(running, "device")

    assert (died["worker"], died["exit_code"]) == ("device", 0)
    assert await running.counts("alignserve_worker_restarts_total") == [1, 0, 0]


def _shared_folder(parent: Path) -> Path:
    (folder,) = parent.glob("alignserve-*")
    return folder


@pytest.mark.long
async def test_a_front_restarts_after_the_folder_was_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cleaners of temporary files do that to a server that has run for weeks; its device process stays."""
    with TemporaryDirectory() as name:  # pytest's own are too long for a socket
        monkeypatch.setenv("TMPDIR", name)
        await _delete_and_restart(Path(name))


async def _delete_and_restart(parent: Path) -> None:
    async with processes() as running:
        rmtree(_shared_folder(parent))

        for name in ("front-0", "device"):
            os.kill(running.pids[name], signal.SIGKILL)
            await _until_ready(running, name)

        assert _shared_folder(parent).stat().st_mode & 0o777 == 0o700


async def _hang_and_replace(name: str, counts: Callable[[str], list[float]]) -> None:
    async with processes("--worker-timeout-seconds", "2") as running:
        os.kill(running.pids[name], signal.SIGSTOP)
        hung = await running.server.event("worker_hung")
        await running.server.event("worker_died")
        await _until_ready(running, name)
        load = Load(running.server.port)
        async with load.callers():
            await load.more(50)

        load.check()
        assert hung["worker"] == name
        assert await running.counts("alignserve_worker_hangs_total") == counts(name)


@pytest.mark.long
@pytest.mark.parametrize("name", ["device", "front-1"])
async def test_a_process_that_hangs_is_replaced(name: str) -> None:
    """Heartbeats tell, whichever process it is, and the others stay."""
    await _hang_and_replace(name, lambda hung: [float(each == hung) for each in NAMES])


@pytest.mark.long
async def test_several_workers_have_a_device_and_fronts_each() -> None:
    """Their names begin with the worker's number; all fronts share the port."""
    flags = ("--workers", "2", "--front-processes", "1", "--drain-delay-seconds", "0")
    async with server_process(*flags) as server:
        events = await server.events("ready")
        (metrics_port,) = [event["metrics_port"] for event in events if event["event"] == "listening"]
        load = Load(server.port)
        async with load.callers(16):
            await load.more(200)
        page = await metrics_page(metrics_port)
        code = await server.stop()

    load.check()
    up = {worker for series, worker in page if series == "alignserve_worker_up"}
    assert up == {"0-device", "0-front-0", "1-device", "1-front-0"}
    handled = [page["grpc_server_handled_total", worker] for worker in ("0-front-0", "1-front-0")]
    assert all(handled)
    assert sum(handled) == len(load.answered)
    assert code == 0


async def test_fronts_answer_probes_while_the_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Health is NOT_SERVING, and calls get UNAVAILABLE."""
    (tmp_path / "sitecustomize.py").write_text(_NEVER_LOADS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    async with server_process("--front-processes", "1") as server:
        await server.event("listening")
        async with (
            connect(server.port) as channel,
            AsyncClient(f"127.0.0.1:{server.port}", retry=RetryPolicy(max_attempts=1)) as client,
        ):
            status = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            with pytest.raises(Exception, match="model is loading"):
                await client.embed_text("early")
        code = await server.stop()

    assert status.status == NOT_SERVING
    assert code == 0


_NEVER_LOADS = """
import sys, threading

if any(name.endswith("workers.worker") for name in sys.orig_argv):
    import alignserve_server.model.fake as fake

    class NeverLoads(fake.FakeEncoder):
        def encode_images(self, batch):
            threading.Event().wait()

    fake.FakeEncoder = NeverLoads
"""
