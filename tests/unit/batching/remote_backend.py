"""A backend in its own process behind a socket: the simplest transport for `InferenceBackend`.

python -m tests.unit.batching.remote_backend device SOCKET   serves a `FakeEncoder` to any number of fronts
python -m tests.unit.batching.remote_backend front SOCKET    reserves room and holds it
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from alignserve_server.batching.admission import QueueLimits
from alignserve_server.batching.backend import AdmissionRequest, PreparedItems
from alignserve_server.batching.batcher import Batcher
from alignserve_server.batching.fair_queue import Flow, Priority
from alignserve_server.batching.local_backend import CacheBytes, LocalBackend
from alignserve_server.batching.request import Embedded
from alignserve_server.batching.scheduler import BatchPolicy, Scheduler
from alignserve_server.errors import ServingError
from alignserve_server.model.encoder import ModelInfo
from alignserve_server.observability.batch_observer import MetricsObserver
from alignserve_server.observability.batch_report import BatchReport
from alignserve_server.observability.metrics import Metrics
from alignserve_server.observability.tracing import Tracing
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from tests.unit.fakes import WatchedEncoder

MAX_ITEMS, OPEN_ITEMS = 8, 6  # in total, and the most that either unary calls or streams may fill
LIMITS = QueueLimits(MAX_ITEMS, 8000)
_FRONT_BITS = 32  # of a reservation on the device: the front's own number; the higher bits name the front
_REPORT = 0  # number of messages that are not answers
_PLAIN = (bool, int, float, str, bytes, type(None), np.ndarray, np.number, Priority)


async def receive(reader: asyncio.StreamReader) -> Any:
    """Returns the next message."""
    size = int.from_bytes(await reader.readexactly(4), "little")
    return pickle.loads(await reader.readexactly(size))  # noqa: S301 — from the other half of this test


def send(writer: asyncio.StreamWriter, *message: object) -> None:
    """Sends a message, which must consist of plain values."""
    _check_plain(message)
    data = pickle.dumps(message)
    writer.write(len(data).to_bytes(4, "little") + data)


def _check_plain(value: object) -> None:
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    elif isinstance(value, ModelInfo):
        value = [getattr(value, name) for name in value.__slots__]
    if isinstance(value, (tuple, list, frozenset)):
        for part in value:
            _check_plain(part)
    elif not isinstance(value, _PLAIN):
        raise TypeError(f"{type(value)} is not a plain value")


class RemoteBackend:
    """A client for an `InferenceBackend` at the other end of a socket."""

    info: ModelInfo

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_report: Callable[[BatchReport], object],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader, self._writer = reader, writer
        self._on_report = on_report
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._receiving = asyncio.create_task(self._receive())

    @classmethod
    async def connect(cls, path: str, on_report: Callable[[BatchReport], object]) -> RemoteBackend:
        backend = cls(*await asyncio.open_unix_connection(path), on_report)
        backend.info = await backend.ask("info")
        return backend

    async def close(self) -> None:
        self._receiving.cancel()
        self._writer.close()
        await self._writer.wait_closed()

    async def admit(self, reservation: int, request: AdmissionRequest) -> None:
        try:
            await self.ask("admit", reservation, request)
        except asyncio.CancelledError:
            self.release(reservation, is_served=False)  # it may have been granted in the meantime
            raise

    def look_up(self, modality: str, key: bytes) -> NDArray[np.float32] | None:
        answer: NDArray[np.float32] | None = asyncio.run_coroutine_threadsafe(
            self.ask("look_up", modality, key), self._loop
        ).result()
        return answer

    async def embed(self, reservation: int, items: PreparedItems) -> Embedded:
        embedded: Embedded = await self.ask("embed", reservation, items)
        return embedded

    def release(self, reservation: int, *, is_served: bool = True) -> None:
        send(self._writer, next(self._numbers), "release", reservation, is_served)

    async def check_not_crowded(self, flow: Flow) -> None:
        await self.ask("check_not_crowded", flow)

    async def ask(self, verb: str, *arguments: object) -> Any:
        """Sends a request and returns its answer, or raises its error."""
        number = next(self._numbers)
        answer = self._answers[number] = self._loop.create_future()
        send(self._writer, number, verb, *arguments)
        try:
            return await answer
        except asyncio.CancelledError:
            send(self._writer, number, "withdraw")
            raise
        finally:
            del self._answers[number]

    async def _receive(self) -> None:
        while True:
            number, answer, error = await receive(self._reader)
            if number == _REPORT:
                self._on_report(answer)
            elif (future := self._answers.get(number)) is not None and not future.done():
                if error is None:
                    future.set_result(answer)
                else:
                    future.set_exception(_raisable(*error))


class ReportingObserver(MetricsObserver):
    """Counts batches and forwards them to the fronts whose sampled calls they contain."""

    def __init__(self) -> None:
        super().__init__(Metrics(CollectorRegistry()), Tracing(None, 0.0))
        self.fronts: dict[int, asyncio.StreamWriter] = {}

    def batch_ended(self, report: BatchReport) -> None:
        super().batch_ended(report)
        for front, writer in self.fronts.items():
            waiting_since = {
                reservation - _of(front, 0): since
                for reservation, since in report.waiting_since.items()
                if reservation >> _FRONT_BITS == front
            }
            if waiting_since:
                send(writer, _REPORT, report._replace(waiting_since=waiting_since, sampled=()), None)


class Device:
    """Serves one backend to all fronts."""

    def __init__(self, encoder: WatchedEncoder) -> None:
        self._encoder = encoder
        self._observer = ReportingObserver()
        policies = {modality: BatchPolicy(8) for modality in ("image", "text")}
        batcher = Batcher(encoder, Scheduler(policies), self._observer, lanes=1)
        batcher.start()
        caches = CacheBytes(image=100_000, text=100_000)
        self._backend = LocalBackend(encoder.info, batcher, self._observer, LIMITS, caches)
        self._fronts = itertools.count(1)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers a front until it disconnects, then frees all that it held."""
        front = next(self._fronts)
        self._observer.fronts[front] = writer
        answering: dict[int, asyncio.Task[None]] = {}
        reserved: set[int] = set()
        try:
            while True:
                number, verb, *arguments = await receive(reader)
                if verb == "withdraw":
                    if number in answering:
                        answering[number].cancel()
                    continue
                if verb in ("admit", "embed", "release"):
                    arguments[0] = _of(front, arguments[0])
                if verb == "release":
                    reserved.discard(arguments[0])
                    self._backend.release(arguments[0], is_served=arguments[1])
                    continue
                if verb == "admit":
                    reserved.add(arguments[0])
                answering[number] = asyncio.create_task(self._answer(writer, number, verb, arguments))
                answering[number].add_done_callback(partial(_drop, answering, number))
        except asyncio.IncompleteReadError:
            pass
        finally:
            del self._observer.fronts[front]
            for task in answering.values():
                task.cancel()
            await asyncio.gather(*answering.values(), return_exceptions=True)
            for reservation in reserved:
                self._backend.release(reservation, is_served=False)
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, number: int, verb: str, arguments: Any) -> None:
        try:
            send(writer, number, await self._do(verb, arguments), None)
        except ServingError as error:
            send(writer, number, None, (type(error).__name__, error.args, _plain_vars(error)))

    async def _do(self, verb: str, arguments: Any) -> object:
        if verb == "info":
            return self._backend.info
        if verb == "look_up":
            return self._backend.look_up(*arguments)
        if verb in ("hold", "resume", "begun"):  # tests control the encoder
            return await self._control(verb)
        return await getattr(self._backend, verb)(*arguments)

    async def _control(self, verb: str) -> None:
        if verb == "begun":
            await self._encoder.begun()
        elif verb == "resume":
            self._encoder.resume()
        else:
            self._encoder.forget_begun()
            self._encoder.hold()


def _drop(answering: dict[int, asyncio.Task[None]], number: int, _: asyncio.Task[None]) -> None:
    answering.pop(number)


def _of(front: int, reservation: int) -> int:
    """Returns the device's number for a front's reservation."""
    return front << _FRONT_BITS | reservation


def _plain_vars(error: ServingError) -> dict[str, object]:
    return {**vars(error), "violations": ()}


def _raisable(kind: str, arguments: tuple[object, ...], attributes: dict[str, object]) -> ServingError:
    import alignserve_server.errors as errors

    found: type[ServingError] = getattr(errors, kind)
    error = found.__new__(found, *arguments)
    vars(error).update(attributes)
    return error


async def run_device(path: str) -> None:
    """Serves until the process is killed."""
    async with await asyncio.start_unix_server(Device(WatchedEncoder()).serve, path) as server:
        print("ready", flush=True)
        await server.serve_forever()


async def run_front(path: str) -> None:
    """Takes all the room that a stream may have and holds it until the process is killed."""
    backend = await RemoteBackend.connect(path, lambda _: None)
    flow = Flow("front", Priority.INTERACTIVE)
    await backend.admit(1, AdmissionRequest("text", OPEN_ITEMS, 1, flow, waits_for_room=True))
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run({"device": run_device, "front": run_front}[sys.argv[1]](sys.argv[2]))
