"""Several server processes behind one address: starts them, replaces those that die or hang, ends them all.

Imports neither gRPC nor a runtime, so that it stays small and nothing of theirs can bring it down.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Protocol, TypeAlias

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics

from alignserve_server.errors import StartupError
from alignserve_server.host.cores import cpu_count
from alignserve_server.host.waiting import first_of
from alignserve_server.observability.logs import dropped_lines, get_logger
from alignserve_server.observability.metrics import log_lines_dropped
from alignserve_server.observability.metrics_http import serve_metrics_page
from alignserve_server.settings import Settings
from alignserve_server.workers.merged_metrics import WorkerPages
from alignserve_server.workers.reserved_port import reserved_port

_log = get_logger(__name__)

_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 0.5, 30.0  # before restarts
_SOUND_SECONDS = 60.0  # who ran for so long did not die of its start
_LATE_SECONDS = 10.0  # beyond drain and grace; then a worker is killed
_LOOKS = 10  # in the time after which a silent worker hangs
_LOADING_SECONDS = 600.0  # imports and a model's compilation may block its event loop
_STACKS_SECONDS = 1.0  # for a dump of its threads' stacks, of whose end nothing tells
_STACKS_BYTES = 32 << 10


class Process(Protocol):
    """A worker's process, as its supervisor sees it."""

    pid: int

    def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yields what the process tells, until it ends: `event`, and what belongs to it."""
        ...

    async def wait(self) -> int:
        """Waits for the end and returns the exit code; minus the signal that ended it."""
        ...

    async def stacks(self) -> str:
        """Returns where its threads are; empty if it cannot tell."""
        ...

    def send_signal(self, number: int) -> None:
        """Signals it, unless it is over."""
        ...


Launch: TypeAlias = Callable[[int, bool], Awaitable[Process]]  # of a worker, and whether it listens first


async def supervise(settings: Settings) -> int:
    """Serves with several workers until SIGTERM or SIGINT, which the workers get too.

    Returns:
        The exit code: 0 after a clean stop, otherwise 1 or that of the worker that could not start.

    Raises:
        StartupError: A port cannot be opened, or a worker was killed before it was ready.
    """
    if settings.workers > cpu_count():
        _log.warning("more_workers_than_cores", workers=settings.workers, cores=cpu_count())
    disable_created_metrics()  # type: ignore[no-untyped-call]  # as the workers do
    registry = CollectorRegistry()
    with reserved_port(settings.listen) as port, ExitStack() as life:
        supervisor = Supervisor(
            settings.workers,
            _launcher(settings, port),
            registry,
            patience_seconds=settings.drain_delay_seconds + settings.shutdown_grace_seconds + _LATE_SECONDS,
            silence_seconds=settings.worker_timeout_seconds,
        )
        page = _metrics_page(settings, registry, lambda: supervisor.state)
        supervisor.addresses = {
            "listen": settings.listen,
            "port": port,
            "metrics_port": life.enter_context(page),
        }
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, supervisor.stop, number)
        return await supervisor.run()


def restart_delay(deaths: int) -> float:
    """Returns the seconds before a restart, by how often in a row the worker has died young."""
    return float(min(_FIRST_DELAY_SECONDS * 2 ** (deaths - 1), _LONGEST_DELAY_SECONDS))


class Worker:
    """One of the workers: a process, and after its death the next one."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: Process | None = None
        self.is_ready = False
        self.state = "loading"  # as its process last told
        self.is_heard = False  # since it was last looked at
        self.has_been_ready = asyncio.Event()
        self.metrics_port = 0  # of its own page, while it is ready

    def stop(self, number: int) -> None:
        """Passes a signal on to its process, if there is one."""
        if self.process is not None:
            # Only a process that is ready has to tell them apart, and before that it may not know SIGINT.
            self.process.send_signal(number if self.is_ready else signal.SIGTERM)

    def kill(self) -> None:
        """Ends its process at once."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)


class Supervisor:
    """Keeps workers running, until `stop` or until one cannot even start."""

    def __init__(
        self,
        workers: int,
        launch: Launch,
        registry: CollectorRegistry,
        *,
        patience_seconds: float,
        silence_seconds: float = 0.0,
        restart_delay: Callable[[int], float] = restart_delay,
    ) -> None:
        """Prepares to run.

        Args:
            workers: How many.
            launch: Starts a process.
            registry: Takes the metrics of the workers, and what is counted about them.
            patience_seconds: A worker that takes longer to stop is killed.
            silence_seconds: A worker that is silent for longer hangs, and is replaced; 0 is never.
            restart_delay: See there.
        """
        self.workers = [Worker(number) for number in range(workers)]
        self._launch = launch
        self.addresses: Mapping[str, object] = {}  # what the log says when the first worker listens
        self._patience_seconds = patience_seconds
        self._look_seconds = silence_seconds / _LOOKS
        self._loading_looks = (
            max(_LOOKS, round(_LOADING_SECONDS / self._look_seconds)) if silence_seconds else 0
        )
        self._restart_delay = restart_delay
        self._stopping = asyncio.Event()
        self._restarts = Counter(
            "alignserve_worker_restarts",
            "Restarts of the worker after it died.",
            ["worker"],
            registry=registry,
        )
        self._hangs = Counter(
            "alignserve_worker_hangs",
            "Times that the worker hung and was killed, to be restarted.",
            ["worker"],
            registry=registry,
        )
        for worker in self.workers:
            self._restarts.labels(worker.number)
            self._hangs.labels(worker.number)
        own = CollectorRegistry()
        log_lines_dropped(own).set_function(dropped_lines)
        registry.register(WorkerPages(workers, self._metrics_ports, self._states, own))

    @property
    def state(self) -> str:
        """One of `metrics.STATES`: serving as long as any worker is."""
        states = self._states().values()
        return next(state for state in ("serving", "stalled", "draining", "loading") if state in states)

    async def run(self) -> int:
        """Starts the first worker, then the others, and restarts those that die after they were ready.

        Returns:
            0 after a `stop` that all heeded, otherwise 1 or the exit code of the worker that could not start.

        Raises:
            StartupError: A worker was ended by a signal before it was ready.
        """
        keeping = {asyncio.ensure_future(self._keep(worker)): worker for worker in self.workers}
        stopping = asyncio.ensure_future(self._stopping.wait())
        announcing = asyncio.ensure_future(self._announce_ready())
        await asyncio.wait({*keeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            self.stop(signal.SIGTERM)
        announcing.cancel()
        _, late = await asyncio.wait(keeping, timeout=self._patience_seconds)
        for task in late:
            _log.error("worker_killed", worker=keeping[task].number)
            keeping[task].kill()
        return max(await asyncio.gather(*keeping))

    def stop(self, number: int) -> None:
        """Passes a signal on to the workers, and lets `run` end with them."""
        self._stopping.set()
        for worker in self.workers:
            worker.stop(number)

    async def _keep(self, worker: Worker) -> int:
        """Runs one process after another, and returns the exit code of the last."""
        first = self.workers[0]
        # The first one may convert the checkpoint, which the others then find converted.
        if worker is not first and await self._stops_before(first.has_been_ready.wait()):
            return 0
        deaths = 0
        while True:
            # Until then probes would get no answer; later, another worker takes the new connections.
            listens_first = worker is first and not first.has_been_ready.is_set()
            process = await self._launch(worker.number, listens_first)
            if self._stopping.is_set():  # meanwhile
                process.send_signal(signal.SIGTERM)
            code, ready_seconds = await self._follow(worker, process)
            if self._stopping.is_set():
                return 0 if code in (0, -signal.SIGTERM) else 1  # the latter before it could handle it
            if not worker.has_been_ready.is_set():
                return _code_of_failed_start(worker.number, code)
            deaths = 1 if ready_seconds > _SOUND_SECONDS else deaths + 1
            delay = self._restart_delay(deaths)
            _log.error("worker_died", worker=worker.number, exit_code=code, restart_seconds=delay)
            if await self._stops_before(asyncio.sleep(delay)):
                return 0
            self._restarts.labels(worker.number).inc()

    async def _follow(self, worker: Worker, process: Process) -> tuple[int, float]:
        """Notes what a process tells until it ends; returns its exit code and for how long it was ready."""
        worker.process, ready_at = process, math.inf
        told: dict[str, dict[str, Any]] = {}
        watching = asyncio.ensure_future(self._watch(worker, process))
        async for event in process.events():
            worker.is_heard = True
            if (name := event.pop("event")) == "beat":
                continue
            if name == "state":
                worker.state = event["state"]
                continue
            told[name] = event
            if told.keys() == {"listening"}:  # before it is ready, as only the first one does, and once
                _log.info("listening", **self.addresses)
            elif told.keys() == {"listening", "ready"}:
                worker.metrics_port = told["listening"]["metrics_port"]
                worker.is_ready, ready_at = True, time.monotonic()
                worker.has_been_ready.set()
                _log.info("worker_ready", worker=worker.number, pid=process.pid, **told["ready"])
        watching.cancel()
        worker.is_ready, worker.state = False, "loading"
        return await process.wait(), time.monotonic() - ready_at

    async def _watch(self, worker: Worker, process: Process) -> None:
        """Kills a process that is silent for too long; one that stops has its own limit.

        Silence is counted in looks, not in seconds: where the machine was suspended or is starved, the
        supervisor itself looks late, and the time in between says nothing about a worker.
        """
        silent_looks = 0
        while self._look_seconds and not self._stopping.is_set():
            worker.is_heard = False
            await asyncio.sleep(self._look_seconds)
            silent_looks = 0 if worker.is_heard else silent_looks + 1
            is_hanging = silent_looks >= (_LOOKS if worker.is_ready else self._loading_looks)
            if is_hanging and await self._kill(worker, process, silent_looks * self._look_seconds):
                return

    async def _kill(self, worker: Worker, process: Process, silent_seconds: float) -> bool:
        """Kills a process that hangs, to be restarted like one that died; not if it answers after all."""
        stacks = await process.stacks()
        if worker.is_heard or self._stopping.is_set():
            return False
        _log.error(
            "worker_hung",
            worker=worker.number,
            pid=process.pid,
            silent_seconds=round(silent_seconds, 1),
            stacks=stacks,
        )
        self._hangs.labels(worker.number).inc()
        process.send_signal(signal.SIGKILL)
        return True

    async def _announce_ready(self) -> None:
        for worker in self.workers:
            await worker.has_been_ready.wait()
        _log.info("ready", workers=len(self.workers))

    async def _stops_before(self, moment: Awaitable[object]) -> bool:
        """Waits for a moment or for `stop`; returns whether `stop` was called."""
        await first_of(moment, self._stopping.wait())
        return self._stopping.is_set()

    def _states(self) -> dict[str, str]:
        """Returns the workers' states. One that is not ready is or will be loading, unless all stop."""
        unready = "draining" if self._stopping.is_set() else "loading"
        return {str(worker.number): worker.state if worker.is_ready else unready for worker in self.workers}

    def _metrics_ports(self) -> dict[str, int]:
        return {str(worker.number): worker.metrics_port for worker in self.workers if worker.is_ready}


class _WorkerProcess:
    """Implements `Process`; see `worker` for its other end."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        stacks_descriptor: int,
    ) -> None:
        self.pid = process.pid
        self._process = process
        self._stacks_descriptor = stacks_descriptor
        self._reader = reader
        self._writer = writer

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        with suppress(ConnectionError):
            while line := await self._reader.readline():
                yield json.loads(line)

    async def wait(self) -> int:
        code = await self._process.wait()
        self._writer.close()
        os.close(self._stacks_descriptor)
        return code

    async def stacks(self) -> str:
        self.send_signal(signal.SIGQUIT)
        await asyncio.sleep(_STACKS_SECONDS)
        size = os.fstat(self._stacks_descriptor).st_size
        # From the end: the main thread, where the event loop is, comes last.
        content = os.pread(self._stacks_descriptor, _STACKS_BYTES, max(0, size - _STACKS_BYTES))
        return content.decode(errors="replace")

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)


def _launcher(settings: Settings, port: int) -> Launch:
    host, _, _ = settings.listen.rpartition(":")
    metrics_listen = None if settings.metrics_listen is None else "127.0.0.1:0"
    own = settings.model_copy(update={"listen": f"{host}:{port}", "metrics_listen": metrics_listen})

    async def launch(worker: int, listens_first: bool) -> Process:
        stacks_descriptor = os.memfd_create("stacks")
        order = {
            "worker": worker,
            "listens_first": listens_first,
            "settings": own.model_dump(mode="json"),
            "beat_seconds": own.worker_timeout_seconds / _LOOKS / 2,
            "stacks_descriptor": stacks_descriptor,
        }
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "alignserve_server.workers.worker"),
                stdin=theirs.fileno(),
                env={**os.environ, "PYTHONSAFEPATH": "1"},  # or -m would import from the current folder first
                start_new_session=True,  # a terminal's Ctrl-C comes here alone, and is passed on once
                pass_fds=[stacks_descriptor],
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        writer.write(f"{json.dumps(order)}\n".encode())
        return _WorkerProcess(process, reader, writer, stacks_descriptor)

    return launch


def _code_of_failed_start(worker: int, code: int) -> int:
    if code > 0:  # its own log says why
        return code
    raise StartupError(f"worker {worker} was ended before it was ready, with code {code}")


@contextmanager
def _metrics_page(settings: Settings, registry: CollectorRegistry, state: Callable[[], str]) -> Iterator[int]:
    """Serves the page, if it is wanted, and yields its port."""
    if settings.metrics_listen is None:
        yield 0
        return
    page = serve_metrics_page(settings.metrics_listen, registry, state)
    try:
        yield page.server_port
    finally:
        page.shutdown()
        page.server_close()
