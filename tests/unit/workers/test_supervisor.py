"""Workers that start, die and end, with fake processes."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from alignserve_server.errors import StartupError
from alignserve_server.observability.metrics import STATES
from alignserve_server.serving.exit_codes import EXIT_UNRECOVERABLE
from alignserve_server.workers.roster import Member, roster
from alignserve_server.workers.supervisor import Supervisor, restart_delay
from prometheus_client import CollectorRegistry

TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL


_SILENCE_SECONDS = 0.2
_BEAT_SECONDS = _SILENCE_SECONDS / 100


async def until(condition: Callable[[], bool]) -> None:
    """Runs the event loop until the condition is true; the test's timeout limits it."""
    while not condition():
        await asyncio.sleep(0)


class FakeProcess:
    """A process controlled by the test; by default a signal ends it with 0."""

    def __init__(self, worker: int | str, listens_first: bool) -> None:
        self.worker = worker
        self.listens_first = listens_first
        self.pid = 1000 + hash(worker) % 1000
        self.signals: list[int] = []
        self.heeds = {TERM, INT, KILL}
        self.beating: asyncio.Task[None] | None = None
        self.comes_back = 0  # how often it responds again while its stacks are requested
        self.times_asked = 0
        self._events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._code = 0

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        while (event := await self._events.get()) is not None:
            yield event

    async def wait(self) -> int:
        return self._code

    async def stacks(self) -> str:
        self.times_asked += 1
        if self.times_asked <= self.comes_back:
            self._events.put_nowait({"event": "beat"})
            await until(self._events.empty)
        return "where its threads are"

    def send_signal(self, number: int) -> None:
        self.signals.append(number)
        if number in self.heeds:
            self.end(-number if number == KILL else 0)

    def tell_state(self, state: str) -> None:
        self._events.put_nowait({"event": "state", "state": state})

    def become_ready(self) -> None:
        self.tell_state("serving")
        self._events.put_nowait({"event": "listening", "metrics_port": 1})
        self._events.put_nowait({"event": "ready"})

    def beat(self) -> None:
        """Starts to send heartbeats."""

        async def beat() -> None:
            while True:
                self._events.put_nowait({"event": "beat"})
                await asyncio.sleep(_BEAT_SECONDS)

        self.beating = asyncio.ensure_future(beat())

    def fall_silent(self) -> None:
        if self.beating is not None:
            self.beating.cancel()

    def end(self, code: int) -> None:
        self.fall_silent()
        self._code = code
        self._events.put_nowait(None)


class Workplace:
    """Supervised processes, by default two workers, and all that were launched, in order."""

    def __init__(
        self,
        stop_timeout_seconds: float = 60.0,
        silence_seconds: float = 0.0,
        members: list[Member] | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        self.deaths: list[int] = []
        self.launched: asyncio.Queue[FakeProcess] = asyncio.Queue()
        self.supervisor = Supervisor(
            members or roster(2, 0),
            self._launch,
            self.registry,
            stop_timeout_seconds=stop_timeout_seconds,
            silence_seconds=silence_seconds,
            restart_delay=self._delay,
        )
        self.running = asyncio.ensure_future(self.supervisor.run())
        self.restart_seconds = 0.0

    async def both_ready(self) -> list[FakeProcess]:
        processes = []
        for worker in self.supervisor.workers:
            process = await self.launched.get()
            process.become_ready()
            await worker.has_been_ready.wait()
            processes.append(process)
        return processes

    def hangs(self, worker: int) -> float | None:
        return self.registry.get_sample_value("alignserve_worker_hangs_total", {"worker": str(worker)})

    def states(self) -> list[str]:
        """Returns the state of each worker, as the metrics show it."""
        return [
            state
            for worker in "01"
            for state in STATES
            if self.registry.get_sample_value("alignserve_state", {"worker": worker, "state": state})
        ]

    def restarts(self, worker: int) -> float | None:
        return self.registry.get_sample_value("alignserve_worker_restarts_total", {"worker": str(worker)})

    async def _launch(self, member: Member, listens_first: bool) -> FakeProcess:
        process = FakeProcess(member.name, listens_first)
        self.launched.put_nowait(process)
        return process

    def _delay(self, deaths: int) -> float:
        self.deaths.append(deaths)
        return self.restart_seconds


@pytest.fixture
async def workplace() -> AsyncIterator[Workplace]:
    """Workers that are stopped after the test."""
    workplace = Workplace()
    yield workplace
    workplace.supervisor.stop(TERM)
    await asyncio.gather(workplace.running, return_exceptions=True)


@pytest.fixture
async def watched() -> AsyncIterator[Workplace]:
    """Workers that count as hung when they are silent."""
    workplace = Workplace(silence_seconds=_SILENCE_SECONDS)
    yield workplace
    workplace.supervisor.stop(TERM)
    await asyncio.gather(workplace.running, return_exceptions=True)


async def test_the_first_worker_is_ready_before_the_others_start(workplace: Workplace) -> None:
    """The checkpoint is converted only once. Only the first worker listens before it is ready."""
    first = await workplace.launched.get()
    alone = workplace.launched.empty()
    first.become_ready()
    second = await workplace.launched.get()

    assert alone
    assert (first.worker, first.listens_first) == (0, True)
    assert (second.worker, second.listens_first) == (1, False)


@pytest.mark.parametrize("worker", [0, 1])
async def test_a_worker_that_dies_is_restarted(workplace: Workplace, worker: int) -> None:
    """The restart is counted. The worker listens once it is ready; the other one is unaffected."""
    processes = await workplace.both_ready()

    processes[worker].end(-KILL)
    successor = await workplace.launched.get()

    assert (successor.worker, successor.listens_first) == (worker, False)
    assert (workplace.restarts(worker), workplace.restarts(1 - worker)) == (1, 0)
    assert processes[1 - worker].signals == []


async def test_a_worker_that_keeps_dying_waits_longer(workplace: Workplace) -> None:
    """This is also so if it can no longer start: a worker that has served is not given up."""
    process, _ = await workplace.both_ready()

    for code in (-KILL, 1, 1):
        process.end(code)
        process = await workplace.launched.get()

    assert workplace.deaths == [1, 2, 3]
    assert workplace.restarts(0) == 3


def test_delays_double_up_to_half_a_minute() -> None:
    """The first restart comes early."""
    assert [restart_delay(deaths) for deaths in (1, 2, 3, 7, 100)] == [0.5, 1.0, 2.0, 30.0, 30.0]


async def test_a_worker_that_cannot_start_ends_the_server_with_its_code(workplace: Workplace) -> None:
    """The worker that is already ready is told to stop."""
    first = await workplace.launched.get()
    first.become_ready()
    second = await workplace.launched.get()

    second.end(2)

    assert await workplace.running == 2
    assert first.signals == [TERM]


async def test_a_worker_that_loses_its_device_while_it_loads_is_restarted(workplace: Workplace) -> None:
    """The others keep serving, and a new process may be able to use the device."""
    first = await workplace.launched.get()
    first.become_ready()
    second = await workplace.launched.get()

    second.end(EXIT_UNRECOVERABLE)

    assert (await workplace.launched.get()).worker == 1
    assert first.signals == []


async def test_a_worker_that_is_killed_while_it_loads_ends_the_server(workplace: Workplace) -> None:
    """If memory is short, the kernel kills processes without a message, so the supervisor reports it."""
    first = await workplace.launched.get()

    first.end(-KILL)

    with pytest.raises(StartupError, match=r"worker 0 .* -9"):
        await workplace.running


@pytest.mark.parametrize("number", [TERM, INT])
async def test_a_signal_reaches_every_worker(workplace: Workplace, number: int) -> None:
    """If all end with 0, so does the server."""
    processes = await workplace.both_ready()

    workplace.supervisor.stop(number)

    assert await workplace.running == 0
    assert [process.signals for process in processes] == [[number], [number]]


async def test_a_second_signal_is_passed_on_too(workplace: Workplace) -> None:
    """It ends the waits of the workers."""
    processes = await workplace.both_ready()
    processes[0].heeds = {KILL}

    workplace.supervisor.stop(TERM)
    processes[0].heeds = {INT, KILL}
    workplace.supervisor.stop(INT)

    assert await workplace.running == 0
    assert processes[0].signals == [TERM, INT]


async def test_a_worker_that_loads_gets_sigterm(workplace: Workplace) -> None:
    """It may not handle signals yet, and on SIGINT Python would print a traceback."""
    first = await workplace.launched.get()
    first.heeds = {KILL}

    workplace.supervisor.stop(INT)
    first.end(-TERM)

    assert await workplace.running == 0
    assert first.signals == [TERM]


async def test_a_stop_does_not_wait_for_a_restart(workplace: Workplace) -> None:
    """A restart that is due in an hour does not delay the stop."""
    workplace.restart_seconds = 3600.0
    processes = await workplace.both_ready()
    processes[0].end(1)
    while not workplace.deaths:
        await asyncio.sleep(0)

    workplace.supervisor.stop(TERM)

    assert await workplace.running == 0
    assert workplace.launched.empty()


async def test_a_worker_that_does_not_stop_is_killed() -> None:
    """The exit code of the server is 1."""
    workplace = Workplace(stop_timeout_seconds=0.0)
    processes = await workplace.both_ready()
    processes[1].heeds = {KILL}

    workplace.supervisor.stop(TERM)

    assert await workplace.running == 1
    assert processes[1].signals == [TERM, KILL]


async def test_a_worker_that_hangs_is_replaced(watched: Workplace) -> None:
    """It is killed, since it would ignore other signals, and counted; the other worker is unaffected."""
    processes = await watched.both_ready()
    processes[1].beat()

    successor = await watched.launched.get()
    successor.beat()

    assert successor.worker == 0
    assert processes[0].signals == [KILL]
    assert processes[1].signals == []
    assert (watched.hangs(0), watched.restarts(0)) == (1, 1)
    assert (watched.hangs(1), watched.restarts(1)) == (0, 0)


async def test_a_worker_that_loads_may_be_silent(watched: Workplace) -> None:
    """Imports and compilation may block its event loop for longer than is acceptable while serving."""
    first = await watched.launched.get()
    first.become_ready()
    first.beat()
    second = await watched.launched.get()

    first.fall_silent()
    await watched.launched.get()

    assert first.signals == [KILL]
    assert second.signals == []


async def test_a_worker_that_responds_to_the_request_for_stacks_survives(watched: Workplace) -> None:
    """It was only slow. If it is silent again, it counts as hung."""
    processes = await watched.both_ready()
    processes[1].beat()
    processes[0].comes_back = 2

    (await watched.launched.get()).beat()

    assert processes[0].times_asked == 3
    assert processes[0].signals == [KILL]
    assert watched.hangs(0) == 1


async def test_a_supervisor_that_was_suspended_kills_no_worker(watched: Workplace) -> None:
    """A suspended or overloaded machine delays its checks in the same way as the workers' heartbeats."""
    processes = await watched.both_ready()
    for process in processes:
        process.beat()

    for _ in range(3):
        time.sleep(2 * _SILENCE_SECONDS)  # noqa: ASYNC251 — to block the event loop
        await asyncio.sleep(0)

    assert [process.signals for process in processes] == [[], []]
    assert [process.times_asked for process in processes] == [0, 0]


async def test_a_worker_that_stops_may_be_silent() -> None:
    """Stopping has its own time limit, after which the worker is killed."""
    workplace = Workplace(stop_timeout_seconds=3 * _SILENCE_SECONDS, silence_seconds=_SILENCE_SECONDS)
    processes = await workplace.both_ready()
    for process in processes:
        process.beat()
    processes[0].heeds = {KILL}

    workplace.supervisor.stop(TERM)
    processes[0].fall_silent()

    assert await workplace.running == 1
    assert processes[0].signals == [TERM, KILL]
    assert workplace.hangs(0) == 0


async def test_the_server_is_ready_as_long_as_one_worker_serves() -> None:
    """This holds from the start, during restarts, and until the end."""
    workplace = Workplace()
    supervisor = workplace.supervisor
    assert (supervisor.state, workplace.states()) == ("loading", ["loading", "loading"])

    first, second = await workplace.both_ready()
    assert (supervisor.state, workplace.states()) == ("serving", ["serving", "serving"])

    first.tell_state("stalled")
    await until(lambda: workplace.states() == ["stalled", "serving"])
    assert supervisor.state == "serving"

    second.end(1)
    await until(lambda: workplace.states() == ["stalled", "loading"])
    assert supervisor.state == "stalled"

    supervisor.stop(TERM)
    await until(lambda: set(workplace.states()) == {"draining"})
    assert supervisor.state == "draining"
    await workplace.running


async def test_a_restarted_worker_is_ready_when_it_reports_it() -> None:
    """The last state of the previous process is forgotten."""
    workplace = Workplace()
    first, _ = await workplace.both_ready()

    first.end(1)
    again = await workplace.launched.get()
    assert workplace.states() == ["loading", "serving"]

    again.become_ready()
    await until(lambda: workplace.states() == ["serving", "serving"])
    workplace.supervisor.stop(TERM)
    await workplace.running


@pytest.fixture
async def groups() -> AsyncIterator[Workplace]:
    """Two workers that consist of a device process and a front each."""
    workplace = Workplace(members=roster(2, 1))
    yield workplace
    workplace.supervisor.stop(TERM)
    await asyncio.gather(workplace.running, return_exceptions=True)


async def test_fronts_of_the_first_device_listen_while_it_loads(groups: Workplace) -> None:
    """Those of other devices listen once they can serve; other devices load after the first."""
    device, front = [await groups.launched.get() for _ in range(2)]
    alone = groups.launched.empty()
    device.become_ready()
    others = [await groups.launched.get() for _ in range(2)]

    assert alone
    assert (device.worker, front.worker) == ("0-device", "0-front-0")
    assert front.listens_first
    assert [(each.worker, each.listens_first) for each in others] == [
        ("1-device", False),
        ("1-front-0", False),
    ]


async def test_a_device_process_is_restarted_alone(groups: Workplace) -> None:
    """Its front reaches the next one by itself. A restarted front listens when it can serve."""
    processes = [await groups.launched.get() for _ in range(2)]
    for process in processes:
        process.become_ready()
    processes += [await groups.launched.get() for _ in range(2)]
    await groups.supervisor.workers[1].has_been_ready.wait()

    processes[0].end(-KILL)
    device = await groups.launched.get()
    processes[1].end(-KILL)
    front = await groups.launched.get()

    assert (device.worker, front.worker, front.listens_first) == ("0-device", "0-front-0", False)
    assert processes[2].signals == processes[3].signals == []


async def test_the_state_is_that_of_fronts(groups: Workplace) -> None:
    """A device process takes no calls, so its state is not that of the server."""
    device, front = [await groups.launched.get() for _ in range(2)]
    device.become_ready()
    await until(groups.supervisor.workers[0].has_been_ready.is_set)
    before = groups.supervisor.state
    front.become_ready()
    await until(groups.supervisor.workers[1].has_been_ready.is_set)

    assert (before, groups.supervisor.state) == ("loading", "serving")


def test_names_say_which_worker_a_process_belongs_to() -> None:
    """One worker needs no number; without fronts the number is the name."""
    assert [member.name for member in roster(2, 0)] == [0, 1]
    assert [member.name for member in roster(1, 2)] == ["device", "front-0", "front-1"]
    assert [member.name for member in roster(2, 1)] == ["0-device", "0-front-0", "1-device", "1-front-0"]
    assert [member.caller_number for member in roster(2, 2) if member.takes_calls] == [0, 1, 2, 3]
