"""Runs several server processes behind one address: starts, replaces and stops them.

Workers have a model each. A group of a device process, which runs the model, and its fronts is a worker too.
Imports neither gRPC nor a runtime, so that it stays small and their bugs cannot crash it.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics

from alignserve_server.access.shared_usage import SharedUsages, new_memory
from alignserve_server.errors import StartupError
from alignserve_server.host.cores import cpu_count
from alignserve_server.host.waiting import first_of
from alignserve_server.observability.logs import dropped_lines, get_logger
from alignserve_server.observability.metrics import log_lines_dropped
from alignserve_server.observability.metrics_http import serve_metrics_page
from alignserve_server.serving.exit_codes import EXIT_UNRECOVERABLE
from alignserve_server.settings import Settings
from alignserve_server.workers.merged_metrics import WorkerPages
from alignserve_server.workers.reserved_port import reserved_port
from alignserve_server.workers.roster import Member, Role, roster

_log = get_logger(__name__)

_MIN_DELAY_SECONDS, _MAX_DELAY_SECONDS = 0.5, 30.0  # before restarts
_STABLE_SECONDS = 60.0  # a worker up for this long resets the backoff
_LATE_SECONDS = 10.0  # after drain and grace; then a worker is killed
_CHECKS = 10  # per timeout of a silent worker
_LOADING_SECONDS = 600.0  # imports and compiling the model may block the event loop
_STACKS_SECONDS = 1.0  # for the dump of the threads' stacks, whose end cannot be detected
_STACKS_BYTES = 32 << 10
_MAX_FOLDER_NAME = 90  # a socket's path has at most 107 bytes


class Process(Protocol):
    """The process of a worker."""

    pid: int

    def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yields what the process reports until it ends: `event` and its fields."""
        ...

    async def wait(self) -> int:
        """Waits for the end and returns the exit code, or minus the number of the signal that ended it."""
        ...

    async def stacks(self) -> str:
        """Returns the stacks of its threads; empty if it cannot report them."""
        ...

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless the process has ended."""
        ...


Launch: TypeAlias = Callable[[Member, bool], Awaitable[Process]]  # takes also whether it listens first


async def supervise(settings: Settings) -> int:
    """Serves with several processes until SIGTERM or SIGINT, which it passes on to them.

    Returns:
        The exit code: 0 after a clean stop, otherwise 1 or that of a worker that could not start.

    Raises:
        StartupError: A port cannot be opened, or a signal ended a worker before it was ready.
    """
    if settings.workers > cpu_count():
        _log.warning("more_workers_than_cores", workers=settings.workers, cores=cpu_count())
    disable_created_metrics()  # type: ignore[no-untyped-call]  # as the workers do
    registry = CollectorRegistry()
    with ExitStack() as life:
        port = life.enter_context(reserved_port(settings.listen))
        http_port = 0
        if settings.http_listen is not None:
            http_port = life.enter_context(reserved_port(settings.http_listen, "--http-listen"))
        shared = life.enter_context(_shared_folder()) if settings.front_processes else Path()
        supervisor = Supervisor(
            roster(settings.workers, settings.front_processes),
            _launcher(settings, port, http_port, shared),
            registry,
            stop_timeout_seconds=settings.drain_delay_seconds
            + settings.shutdown_grace_seconds
            + _LATE_SECONDS,
            silence_seconds=settings.worker_timeout_seconds,
        )
        page = _metrics_page(settings, registry, lambda: supervisor.state)
        supervisor.addresses = {
            "listen": settings.listen,
            "port": port,
            "metrics_port": life.enter_context(page),
            "http_port": http_port,
        }
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, supervisor.stop, number)
        return await supervisor.run()


def restart_delay(deaths: int) -> float:
    """Returns the delay before a restart in seconds, given the number of early deaths in a row."""
    return float(min(_MIN_DELAY_SECONDS * 2 ** (deaths - 1), _MAX_DELAY_SECONDS))


class MemberProcess:
    """A member of the roster and its process; after a restart the next one."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.name = member.name
        self.process: Process | None = None
        self.is_ready = False
        self.state = "loading"  # as last reported by its process
        self.is_heard = False  # since the last check
        self.has_been_ready = asyncio.Event()
        self.metrics_port = 0  # of its own metrics, while it is ready

    def stop(self, number: int) -> None:
        """Passes a signal on to its process, if there is one."""
        if self.process is not None:
            # Only a process that is ready distinguishes the two; before that it may not handle SIGINT.
            self.process.send_signal(number if self.is_ready else signal.SIGTERM)

    def kill(self) -> None:
        """Kills its process."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)


class Supervisor:
    """Keeps workers running until `stop`, or until one cannot start."""

    def __init__(
        self,
        members: Sequence[Member],
        launch: Launch,
        registry: CollectorRegistry,
        *,
        stop_timeout_seconds: float,
        silence_seconds: float = 0.0,
        restart_delay: Callable[[int], float] = restart_delay,
    ) -> None:
        """Does not start any process; `run` does.

        Args:
            members: The processes, in the order of their start.
            launch: Starts a process.
            registry: Takes the metrics of the workers, and those about them.
            stop_timeout_seconds: A worker that takes longer to stop is killed.
            silence_seconds: A worker that is silent for longer is killed and replaced; 0 never does.
            restart_delay: See the function `restart_delay`.
        """
        self.workers = [MemberProcess(member) for member in members]
        self._launch = launch
        self.addresses: Mapping[str, object] = {}  # logged when the first worker listens
        self._stop_timeout_seconds = stop_timeout_seconds
        self._check_seconds = silence_seconds / _CHECKS
        self._loading_checks = (
            max(_CHECKS, round(_LOADING_SECONDS / self._check_seconds)) if silence_seconds else 0
        )
        self._restart_delay = restart_delay
        self._has_listened = False
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
            self._restarts.labels(worker.name)
            self._hangs.labels(worker.name)
        own = CollectorRegistry()
        log_lines_dropped(own).set_function(dropped_lines)
        registry.register(
            WorkerPages([str(worker.name) for worker in self.workers], self._metrics_ports, self._states, own)
        )

    @property
    def state(self) -> str:
        """One of `metrics.STATES`: `serving` as long as any worker is serving."""
        states = self._states().values()
        return next(state for state in ("serving", "stalled", "draining", "loading") if state in states)

    async def run(self) -> int:
        """Starts the first group, then the others, and restarts processes that die after they were ready.

        One that loses its device is restarted even if it was not ready yet.

        Returns:
            0 after a clean stop, otherwise 1 or the exit code of a worker that could not start.

        Raises:
            StartupError: A signal ended a worker before it was ready.
        """
        keeping = {asyncio.ensure_future(self._keep(worker)): worker for worker in self.workers}
        stopping = asyncio.ensure_future(self._stopping.wait())
        announcing = asyncio.ensure_future(self._announce_ready())
        await asyncio.wait({*keeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            self.stop(signal.SIGTERM)
        announcing.cancel()
        _, late = await asyncio.wait(keeping, timeout=self._stop_timeout_seconds)
        for task in late:
            _log.error("worker_killed", worker=keeping[task].name)
            keeping[task].kill()
        return max(await asyncio.gather(*keeping))

    def stop(self, number: int) -> None:
        """Passes a signal on to the workers; `run` returns when they have ended."""
        self._stopping.set()
        for worker in self.workers:
            worker.stop(number)

    async def _keep(self, worker: MemberProcess) -> int:
        """Runs the worker's processes one after the other; returns the exit code of the last one."""
        first = self.workers[0]
        is_in_first_group = worker.member.group == first.member.group
        # The first model may have to be converted, and the others use the result.
        if not is_in_first_group and await self._stops_before(first.has_been_ready.wait()):
            return 0
        deaths = 0
        while True:
            # So that probes get an answer while it loads; later, others accept new connections.
            listens_first = is_in_first_group and not first.has_been_ready.is_set()
            process = await self._launch(worker.member, listens_first)
            if self._stopping.is_set():  # while it was launched
                process.send_signal(signal.SIGTERM)
            code, ready_seconds = await self._follow(worker, process)
            if self._stopping.is_set():
                return 0 if code in (0, -signal.SIGTERM) else 1  # SIGTERM before it could handle it
            if not worker.has_been_ready.is_set() and code != EXIT_UNRECOVERABLE:
                return _code_of_failed_start(worker.name, code)
            deaths = 1 if ready_seconds > _STABLE_SECONDS else deaths + 1
            delay = self._restart_delay(deaths)
            _log.error("worker_died", worker=worker.name, exit_code=code, restart_seconds=delay)
            if await self._stops_before(asyncio.sleep(delay)):
                return 0
            self._restarts.labels(worker.name).inc()

    async def _follow(self, worker: MemberProcess, process: Process) -> tuple[int, float]:
        """Handles the events of a process until it ends; returns its exit code and how long it was ready."""
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
            if told.keys() == {"listening"}:  # before it is ready, which only the first group does
                self._note_listening(worker)
            elif told.keys() == {"listening", "ready"}:
                worker.metrics_port = told["listening"]["metrics_port"]
                worker.is_ready, ready_at = True, time.monotonic()
                worker.has_been_ready.set()
                _log.info("worker_ready", worker=worker.name, pid=process.pid, **told["ready"])
        watching.cancel()
        worker.is_ready, worker.state = False, "loading"
        return await process.wait(), time.monotonic() - ready_at

    def _note_listening(self, worker: MemberProcess) -> None:
        """Logs the addresses when the first of the processes that take calls listens."""
        if worker.member.takes_calls and not self._has_listened:
            self._has_listened = True
            _log.info("listening", **self.addresses)

    async def _watch(self, worker: MemberProcess, process: Process) -> None:
        """Kills a process that is silent for too long; stopping has its own timeout.

        Silence is counted in checks, not in seconds: if the machine was suspended or is overloaded, the
        supervisor itself checks late, and the time in between says nothing about a worker.
        """
        silent_checks = 0
        while self._check_seconds and not self._stopping.is_set():
            worker.is_heard = False
            await asyncio.sleep(self._check_seconds)
            silent_checks = 0 if worker.is_heard else silent_checks + 1
            is_hanging = silent_checks >= (_CHECKS if worker.is_ready else self._loading_checks)
            if is_hanging and await self._kill(worker, process, silent_checks * self._check_seconds):
                return

    async def _kill(self, worker: MemberProcess, process: Process, silent_seconds: float) -> bool:
        """Kills a hung process, which is then restarted; returns False if it responds after all."""
        stacks = await process.stacks()
        if worker.is_heard or self._stopping.is_set():
            return False
        _log.error(
            "worker_hung",
            worker=worker.name,
            pid=process.pid,
            silent_seconds=round(silent_seconds, 1),
            stacks=stacks,
        )
        self._hangs.labels(worker.name).inc()
        process.send_signal(signal.SIGKILL)
        return True

    async def _announce_ready(self) -> None:
        for worker in self.workers:
            await worker.has_been_ready.wait()
        groups = {worker.member.group for worker in self.workers}
        fronts = sum(worker.member.role is Role.FRONT for worker in self.workers)
        _log.info("ready", workers=len(groups), **({"fronts": fronts} if fronts else {}))

    async def _stops_before(self, moment: Awaitable[object]) -> bool:
        """Waits for `moment` or for `stop`; returns whether `stop` was called."""
        await first_of(moment, self._stopping.wait())
        return self._stopping.is_set()

    def _states(self) -> dict[str, str]:
        """Returns the states of those that take calls. One that is not ready is loading, unless all stop."""
        unready = "draining" if self._stopping.is_set() else "loading"
        return {
            str(worker.name): worker.state if worker.is_ready else unready
            for worker in self.workers
            if worker.member.takes_calls
        }

    def _metrics_ports(self) -> dict[str, int]:
        return {str(worker.name): worker.metrics_port for worker in self.workers if worker.is_ready}


class _WorkerProcess:
    """Implements `Process`; `worker` is the other end."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        stacks_descriptor: int,
        on_end: Callable[[], object],
    ) -> None:
        self.pid = process.pid
        self._process = process
        self._stacks_descriptor = stacks_descriptor
        self._on_end = on_end
        self._reader = reader
        self._writer = writer

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        with suppress(ConnectionError):
            while line := await self._reader.readline():
                yield json.loads(line)

    async def wait(self) -> int:
        code = await self._process.wait()
        self._on_end()
        self._writer.close()
        os.close(self._stacks_descriptor)
        return code

    async def stacks(self) -> str:
        self.send_signal(signal.SIGQUIT)
        await asyncio.sleep(_STACKS_SECONDS)
        size = os.fstat(self._stacks_descriptor).st_size
        # The end of it: the main thread, which runs the event loop, comes last.
        content = os.pread(self._stacks_descriptor, _STACKS_BYTES, max(0, size - _STACKS_BYTES))
        return content.decode(errors="replace")

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)


@contextmanager
def _shared_folder() -> Iterator[Path]:
    """Yields a new folder for what the processes share by path, which only this user can enter.

    Raises:
        StartupError: No folder can be made, or its name is too long for a socket.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix="alignserve-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StartupError(
            f"front processes need a folder for what they share: {error}; set TMPDIR"
        ) from error
    with made as folder:
        if len(folder) > _MAX_FOLDER_NAME:
            raise StartupError(f"{folder} is too long a name for a folder of sockets; set TMPDIR")
        yield Path(folder)


def _launcher(settings: Settings, port: int, http_port: int, shared: Path) -> Launch:
    processes = settings.workers * max(1, settings.front_processes)  # that take calls
    memory = new_memory(processes)
    own = settings.model_copy(
        update={
            "listen": _with_port(settings.listen, port),
            "metrics_listen": None if settings.metrics_listen is None else "127.0.0.1:0",
            "http_listen": None
            if settings.http_listen is None
            else _with_port(settings.http_listen, http_port),
        }
    )

    async def launch(member: Member, listens_first: bool) -> Process:
        stacks_descriptor = os.memfd_create("stacks")
        spec = {
            "worker": member.name,
            "role": member.role.value,
            "group": member.group,
            "socket": str(shared / f"device-{member.group}"),
            "usages": {
                "descriptor": memory,
                "process": member.caller_number,
                "processes": processes,
            },
            "listens_first": listens_first,
            "settings": own.model_dump(mode="json"),
            "beat_seconds": own.worker_timeout_seconds / _CHECKS / 2,
            "stacks_descriptor": stacks_descriptor,
        }
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "alignserve_server.workers.worker"),
                stdin=theirs.fileno(),
                env={
                    **os.environ,
                    "PYTHONSAFEPATH": "1",
                },  # or -m would import from the current directory first
                start_new_session=True,  # Ctrl-C reaches only the supervisor, which passes it on
                pass_fds=[stacks_descriptor, memory],
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        writer.write(f"{json.dumps(spec)}\n".encode())
        usages = SharedUsages(memory, member.caller_number, processes)
        on_end = usages.drop_calls if member.takes_calls else lambda: None
        return _WorkerProcess(process, reader, writer, stacks_descriptor, on_end)

    return launch


def _with_port(address: str, port: int) -> str:
    host, _, _ = address.rpartition(":")
    return f"{host}:{port}"


def _code_of_failed_start(worker: int | str, code: int) -> int:
    if code > 0:  # logged by the worker
        return code
    raise StartupError(f"worker {worker} ended with code {code} before it was ready")


@contextmanager
def _metrics_page(settings: Settings, registry: CollectorRegistry, state: Callable[[], str]) -> Iterator[int]:
    """Serves metrics if configured, and yields the port, or 0."""
    if settings.metrics_listen is None:
        yield 0
        return
    page = serve_metrics_page(settings.metrics_listen, registry, state)
    try:
        yield page.server_port
    finally:
        page.shutdown()
        page.server_close()
