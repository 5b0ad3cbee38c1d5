"""Callers in an open loop, and the outcome of each call: refusals count as well as answers."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from alignserve.errors import AlignserveError, error_from_call
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

_PACKED = pb.EmbeddingOptions(format=pb.EMBEDDING_FORMAT_PACKED_FLOAT32)
_numbers = itertools.count()
_LOOP = asyncio.new_event_loop()  # shared, since grpc.aio stays on the first loop that uses it


@dataclass(frozen=True)
class Caller:
    """A caller that sends single texts.

    Attributes:
        rate: Calls per second, at random times (Poisson).
        key: API key.
        timeout_seconds: Timeout of each call.
        is_bulk: Whether the calls have bulk priority.
    """

    rate: float
    key: str = ""
    timeout_seconds: float | None = None
    is_bulk: bool = False

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """The metadata of each call."""
        key = [("authorization", f"Bearer {self.key}")] if self.key else []
        return [*key, ("alignserve-priority", "bulk" if self.is_bulk else "interactive")]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a call."""

    due: float  # seconds after the start of the run
    seconds: float  # from when it was due to its end
    error: AlignserveError | None = None


@dataclass(frozen=True)
class Summary:
    """The outcomes of a caller's calls."""

    outcomes: Sequence[Outcome]
    seconds: float  # period in which the calls were due

    @property
    def answered(self) -> list[float]:
        """The durations of answered calls, in seconds."""
        return [each.seconds for each in self.outcomes if each.error is None]

    @property
    def refused(self) -> list[Outcome]:
        """Calls that were refused because of a full queue or a close deadline."""
        return [
            each
            for each in self.outcomes
            if each.error is not None and each.error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        ]

    @property
    def late(self) -> int:
        """Number of calls that were neither answered nor refused."""
        return len(self.outcomes) - len(self.answered) - len(self.refused)

    @property
    def rate(self) -> float:
        """Answers per second, counting only those that arrived while calls were still being sent."""
        in_time = [each for each in self.outcomes if each.due + each.seconds < self.seconds]
        return sum(each.error is None for each in in_time) / self.seconds

    def answered_ms(self, percent: int) -> float:
        """Returns a percentile of the answered calls' durations, in milliseconds."""
        return 1e3 * percentile(self.answered, percent)

    def refused_ms(self, percent: int) -> float:
        """Returns a percentile of the refused calls' durations, in milliseconds."""
        return 1e3 * percentile([each.seconds for each in self.refused], percent)


def percentile(values: Sequence[float], percent: int) -> float:
    """Returns a percentile; NaN if there are no values."""
    if len(values) < 2:
        return values[0] if values else float("nan")
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def call_all(address: str, callers: Sequence[Caller], seconds: float) -> list[Summary]:
    """Runs all callers at the same time for some seconds; returns a summary of each caller's calls."""

    async def all_at_once() -> list[Summary]:
        return await asyncio.gather(*(_call(address, caller, seconds) for caller in callers))

    with _no_garbage_collection():
        return _LOOP.run_until_complete(all_at_once())


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disables garbage collection, whose pauses grow with the outcomes and would look like server latency."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def capacity(address: str, seconds: float, *, at_once: int, key: str = "") -> float:
    """Returns the maximum answers per second, with `at_once` calls always in flight."""
    return _LOOP.run_until_complete(_capacity(address, seconds, at_once, key))


async def _capacity(address: str, seconds: float, at_once: int, key: str) -> float:
    loop = asyncio.get_running_loop()
    caller = Caller(0.0, key)
    async with _channel(address) as channel:
        stub = pb_grpc.AlignServiceStub(channel)
        begin = loop.time() + 1.0  # after a warm-up
        ends: list[float] = []

        async def work() -> None:
            while loop.time() < begin + seconds:
                outcome = await _send(stub, caller, begin, loop.time())
                if outcome.error is None:
                    ends.append(loop.time())

        await asyncio.gather(*(work() for _ in range(at_once)))
    return sum(begin <= end < begin + seconds for end in ends) / seconds


async def _call(address: str, caller: Caller, seconds: float) -> Summary:
    loop = asyncio.get_running_loop()
    rng = random.Random(next(_numbers))
    async with _channel(address) as channel:
        stub = pb_grpc.AlignServiceStub(channel)
        begin = due = loop.time()
        calls = []
        while (due := due + rng.expovariate(caller.rate)) < begin + seconds:
            await asyncio.sleep(max(0.0, due - loop.time()))
            calls.append(asyncio.create_task(_send(stub, caller, begin, due)))
        return Summary(await asyncio.gather(*calls), seconds)


async def _send(stub: pb_grpc.AlignServiceAsyncStub, caller: Caller, begin: float, due: float) -> Outcome:
    loop = asyncio.get_running_loop()
    request = pb.EmbedTextRequest(texts=[f"text number {next(_numbers)}"], embedding_options=_PACKED)
    try:
        await stub.EmbedText(request, timeout=caller.timeout_seconds, metadata=caller.metadata)
    except grpc.aio.AioRpcError as error:
        return Outcome(due - begin, loop.time() - due, error_from_call(error))
    return Outcome(due - begin, loop.time() - due)


def _channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(
        address, [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    )
