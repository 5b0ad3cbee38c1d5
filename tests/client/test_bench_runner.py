"""The load generator, with time that jumps from event to event, and against a fake server."""

from __future__ import annotations

import asyncio
import itertools
import selectors
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import pytest
from alignserve._bench.load import ClosedLoop, Load, OpenLoop
from alignserve._bench.recorder import Failure, Measurement
from alignserve._bench.routes import RequestFailed
from alignserve._bench.runner import RunLength, drive, measure
from alignserve._bench.workload import EMBED_TEXT, UnaryRequest
from alignserve.errors import UnavailableError
from alignserve.testing import FakeServer
from alignserve.v1 import align_service_pb2 as pb

_T = TypeVar("_T")

SERVICE_SECONDS = 0.01
CALL = UnaryRequest("/any.Service/Method", b"")


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer instead of passing."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.now


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "no timer is left, but the work is not done"
        self._loop.now += timeout
        return super().select(0)


@dataclass
class FakeRoute:
    """Answers after 10 ms, but pauses at certain times."""

    stalls: tuple[tuple[float, float], ...] = ()
    failure: Failure | None = None
    sent: list[tuple[float, float]] = field(default_factory=list)  # (time, timeout)
    most_in_flight: int = 0
    _in_flight: int = 0

    async def send(self, call: UnaryRequest, timeout_seconds: float) -> None:
        now = asyncio.get_running_loop().time()
        self.sent.append((now, timeout_seconds))
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        seconds = SERVICE_SECONDS + sum(end - now for begin, end in self.stalls if begin <= now < end)
        await asyncio.sleep(min(seconds, timeout_seconds))
        self._in_flight -= 1
        if seconds > timeout_seconds:
            raise RequestFailed(Failure("DEADLINE_EXCEEDED", "", "too late"))
        if self.failure is not None:
            raise RequestFailed(self.failure)


def run(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    loop = JumpingLoop()
    try:
        return loop.run_until_complete(work())
    finally:
        loop.close()


def driven(route: FakeRoute, load: Load, run_length: RunLength, calls: int | None = None) -> Measurement:
    return run(lambda: drive([route], itertools.islice(itertools.repeat(CALL), calls), load, run_length))


def test_a_closed_loop_keeps_its_requests_in_flight() -> None:
    """Four concurrent requests of 10 ms each are 400 per second."""
    route = FakeRoute()

    found = driven(route, ClosedLoop(4), RunLength(10))

    assert route.most_in_flight == 4
    assert found.requests_per_second == pytest.approx(400, rel=0.01)
    assert found.latency.percentile(50) == pytest.approx(SERVICE_SECONDS, rel=0.01)


def test_an_open_loop_sends_when_requests_are_due() -> None:
    """Neither answers nor earlier sends delay later requests."""
    route = FakeRoute(stalls=((1, 3),))

    driven(route, OpenLoop(50, "constant"), RunLength(10))

    assert [time for time, _ in route.sent] == pytest.approx([number / 50 for number in range(500)])


def test_a_stall_shows_in_the_percentiles_of_an_open_loop() -> None:
    """Every request due in a two-second pause waited, so a tenth of all requests waited a second or more."""
    found = driven(FakeRoute(stalls=((1, 3),)), OpenLoop(100, "constant"), RunLength(10))

    assert found.requests == 1000
    assert found.latency.percentile(79) == pytest.approx(SERVICE_SECONDS, rel=0.01)
    assert found.latency.percentile(90) == pytest.approx(1 + SERVICE_SECONDS, rel=0.02)
    assert found.latency.max == pytest.approx(2 + SERVICE_SECONDS)


def test_a_stall_counts_also_for_requests_that_could_not_leave() -> None:
    """At the maximum in flight, requests are sent late; none is dropped, and the delay counts."""
    route = FakeRoute(stalls=((1, 3),))

    found = driven(route, OpenLoop(50, "constant", max_in_flight=1), RunLength(10))

    assert route.most_in_flight == 1
    assert found.requests == len(route.sent) == 500
    assert found.latency.percentile(90) > 1.0
    assert found.send_delay.percentile(90) > 1.0


def test_a_stall_hides_from_a_closed_loop() -> None:
    """In a closed loop, one request measures a two-second pause: the reason for open loops."""
    found = driven(FakeRoute(stalls=((1, 3),)), ClosedLoop(1), RunLength(10))

    assert found.latency.percentile(99) == pytest.approx(SERVICE_SECONDS, rel=0.01)
    assert found.latency.max == pytest.approx(2 + SERVICE_SECONDS, rel=0.01)


def test_a_timeout_counts_from_when_a_request_was_due() -> None:
    """Late requests have less time left, so that an overloaded run ends soon after its duration."""
    route = FakeRoute(stalls=((0, 1000),))

    found = driven(route, OpenLoop(10, "constant", max_in_flight=1), RunLength(10, timeout_seconds=2))

    assert (found.succeeded, found.failed) == (0, 100)
    assert [time + timeout for time, timeout in route.sent] == pytest.approx(
        [number / 10 + 2 for number in range(100)]
    )


def test_a_request_whose_time_is_over_is_not_sent_but_counted() -> None:
    """A request that was due but never sent counts as failed; dropping it would flatter the server."""

    class Deaf(FakeRoute):
        async def send(self, call: UnaryRequest, timeout_seconds: float) -> None:
            await asyncio.sleep(3)

    found = driven(Deaf(), OpenLoop(10, "constant", max_in_flight=1), RunLength(1, timeout_seconds=2))

    assert (found.requests, found.succeeded) == (10, 1)
    assert found.failures["DEADLINE_EXCEEDED", "NEVER_SENT"].count == 9


@pytest.mark.parametrize("load", [ClosedLoop(2), OpenLoop(200, "constant")])
def test_the_warm_up_is_sent_and_not_counted(load: Load) -> None:
    """A pause during the warm-up does not count, and rates are measured after it."""
    route = FakeRoute(stalls=((0.5, 1),))

    found = driven(route, load, RunLength(5, warmup_seconds=2))

    assert min(time for time, _ in route.sent) == 0
    assert found.seconds == pytest.approx(5)
    assert found.requests_per_second == pytest.approx(200, rel=0.01)
    assert found.latency.max == pytest.approx(SERVICE_SECONDS, rel=0.01)


@pytest.mark.parametrize("load", [ClosedLoop(4), OpenLoop(100, "constant")])
def test_the_number_of_requests_ends_a_measurement(load: Load) -> None:
    """Exactly `max_requests` are counted, and the rate uses the time that they took."""
    found = driven(FakeRoute(), load, RunLength(100, warmup_seconds=1, max_requests=30))

    assert found.requests == 30
    assert found.seconds < 1
    assert not found.was_interrupted


def test_a_workload_may_end() -> None:
    """A workload of seven calls gives seven requests."""
    found = driven(FakeRoute(), ClosedLoop(2), RunLength(100), calls=7)

    assert found.requests == 7


def test_overload_is_a_rate_below_the_one_asked_for() -> None:
    """Answers after the end count for latency, but not for throughput."""
    found = driven(
        FakeRoute(), OpenLoop(1000, "constant", max_in_flight=1), RunLength(2, timeout_seconds=100)
    )

    assert found.requests == found.succeeded == 2000
    assert found.requests_per_second == pytest.approx(100, rel=0.02)
    assert found.latency.max == pytest.approx(18, rel=0.02)


def test_failures_are_counted_by_code_and_reason() -> None:
    """Failures do not affect latencies and rates, and one message represents all."""
    failure = Failure("RESOURCE_EXHAUSTED", "QUEUE_FULL", "full")

    found = driven(FakeRoute(failure=failure), ClosedLoop(1), RunLength(1))

    assert (found.succeeded, found.failed) == (0, found.requests)
    assert found.failures["RESOURCE_EXHAUSTED", "QUEUE_FULL"].count == found.requests
    assert found.failures["RESOURCE_EXHAUSTED", "QUEUE_FULL"].example == failure
    assert (found.latency.count, found.requests_per_second) == (0, 0)


def test_stopping_returns_the_results_so_far() -> None:
    """Requests in flight are cancelled and reported as such."""

    async def stopped() -> Measurement:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(2.005, stop.set)
        return await drive([FakeRoute()], itertools.repeat(CALL), ClosedLoop(3), RunLength(100), stop=stop)

    found = run(stopped)

    assert found.was_interrupted
    assert found.seconds == pytest.approx(2.005)
    assert (found.requests, found.unfinished) == (600, 3)


def test_a_fault_of_the_generator_is_not_a_result() -> None:
    """An unexpected exception ends the measurement and is raised."""

    class Broken(FakeRoute):
        async def send(self, call: UnaryRequest, timeout_seconds: float) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        driven(Broken(), OpenLoop(10), RunLength(10))


def texts(*found: str) -> list[UnaryRequest]:
    return [UnaryRequest(EMBED_TEXT, pb.EmbedTextRequest(texts=[text]).SerializeToString()) for text in found]


@pytest.mark.parametrize("streams", [0, 1, 3])
async def test_calls_reach_the_server(server: FakeServer, streams: int) -> None:
    """The same calls work as unary calls and over streams."""
    workload = texts(*map(str, range(20)))

    found = await measure(server.target, iter(workload), ClosedLoop(4), RunLength(60), streams=streams)

    requests = [call.request if streams == 0 else call.request.embed_text for call in server.received]
    assert (found.succeeded, found.failed) == (20, 0)
    assert sorted(request.texts[0] for request in requests) == sorted(map(str, range(20)))


@pytest.mark.parametrize("streams", [0, 1])
async def test_errors_of_the_server_have_code_and_reason(server: FakeServer, streams: int) -> None:
    """One bad item among good ones counts as one failure, in a stream too."""
    server.fail_input("bad", grpc.StatusCode.INVALID_ARGUMENT, "TEXT_TOO_LONG")
    workload = texts("a", "bad", "b")

    found = await measure(server.target, iter(workload), ClosedLoop(1), RunLength(60), streams=streams)

    assert (found.succeeded, found.failed) == (2, 1)
    assert found.failures["INVALID_ARGUMENT", "TEXT_TOO_LONG"].count == 1


async def test_refusals_are_counted_and_not_repeated(server: FakeServer) -> None:
    """Refusals are counted and not retried, which would hide them."""
    server.fail_next(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", times=2)

    found = await measure(server.target, iter(texts("a", "b", "c")), ClosedLoop(1), RunLength(60))

    assert (found.succeeded, found.failed) == (1, 2)


async def test_a_broken_stream_is_opened_again(server: FakeServer) -> None:
    """If a stream breaks, items in flight fail as unavailable, and later items use a new stream."""
    server.break_stream(after=1)

    found = await measure(
        server.target, iter(texts("a", "b", "c", "d")), ClosedLoop(1), RunLength(60), streams=1
    )

    assert found.failed <= 1  # the break may be seen before the next item leaves
    assert found.requests == 4
    assert {code for code, _ in found.failures} <= {"UNAVAILABLE"}


async def test_items_of_a_held_stream_expire(server: FakeServer) -> None:
    """Each item of a stream has its own deadline, which the generator enforces."""
    server.hold()

    found = await measure(
        server.target, iter(texts("a", "b")), ClosedLoop(2), RunLength(60, timeout_seconds=0.2), streams=1
    )

    server.release()
    assert found.failures["DEADLINE_EXCEEDED", ""].count == 2


async def test_a_held_server_delays_requests_due_before(server: FakeServer) -> None:
    """Over real gRPC too, all requests sent during a stall wait for its end, and none is lost."""
    server.hold()
    releaser = threading.Thread(target=lambda: (server.wait_for_received(5), server.release()))
    releaser.start()

    found = await measure(
        server.target, iter(texts(*"abcde")), OpenLoop(1000, "constant"), RunLength(60, timeout_seconds=60)
    )

    releaser.join()
    assert found.succeeded == 5


async def test_connections_are_connections(server: FakeServer) -> None:
    """Four channels to one address do not share one connection."""
    seen = set()

    def peer(request: bytes, context: Any) -> bytes:
        seen.add(context.peer())
        return b""

    handler = grpc.method_handlers_generic_handler(
        "any.Service", {"Method": grpc.unary_unary_rpc_method_handler(peer)}
    )
    other = grpc.server(ThreadPoolExecutor(4))
    other.add_generic_rpc_handlers([handler])
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()

    found = await measure(
        f"127.0.0.1:{port}", itertools.repeat(CALL, 40), ClosedLoop(4), RunLength(60), connections=4
    )

    other.stop(None).wait()
    assert found.succeeded == 40
    assert len(seen) == 4


async def test_no_server_is_an_error() -> None:
    """A missing server is reported before the measurement's time is over."""
    with FakeServer() as gone:
        target = gone.target

    with pytest.raises(UnavailableError, match="cannot connect"):
        await measure(target, iter(texts("a")), ClosedLoop(1), RunLength(60, timeout_seconds=0.2))


async def test_only_methods_of_the_stream_travel_on_it(server: FakeServer) -> None:
    """Methods of other services are refused on streams."""
    with pytest.raises(ValueError, match="cannot be sent over a stream"):
        await measure(server.target, iter([CALL]), ClosedLoop(1), RunLength(60), streams=1)
