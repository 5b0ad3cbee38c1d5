"""In any order of events, every call is answered once, with its own result, and nothing is left over."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from alignserve_server.batching.admission import QueueLimits
from alignserve_server.batching.batcher import Batcher
from alignserve_server.batching.call import CallContext
from alignserve_server.batching.fair_queue import ANONYMOUS, Flow, Priority
from alignserve_server.batching.local_backend import CacheBytes
from alignserve_server.batching.queue import Entry
from alignserve_server.batching.scheduler import BatchPolicy, Scheduler
from alignserve_server.errors import (
    ExpiredInQueue,
    InferenceFailed,
    InvalidArgument,
    ModelStalled,
    ServingError,
)
from alignserve_server.modality import MODALITIES
from alignserve_server.model.encoder import Embeddings, PixelValues, TokenIds
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.observability.batch_observer import MetricsObserver
from alignserve_server.observability.metrics import Metrics
from alignserve_server.observability.tracing import Tracing
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from tests.unit.fakes import FakeClock, local_engine, settle

_T = TypeVar("_T")

MAX_ITEMS, MAX_BYTES = 12, 400
OPEN_ITEMS, OPEN_BYTES = 9, 300  # three quarters: the most that waiting calls may fill
_MAX_STEPS = 1000
_REFUSALS = ("QUEUE_FULL", "WOULD_MISS_DEADLINE")


class ClockedLoop(asyncio.SelectorEventLoop):
    """An event loop that takes its time from a clock."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.time = clock  # type: ignore[method-assign]  # asyncio offers no other way


class SteppedPool(Executor):
    """Runs jobs only when told to, on the caller's thread."""

    def __init__(self) -> None:
        self._jobs: list[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def submit(self, job: Callable[..., Any], /, *arguments: Any, **_: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._jobs.append((future, job, arguments))
        return future

    def run_next(self) -> None:
        """Runs the job that has waited longest."""
        future, job, arguments = self._jobs.pop(0)
        if future.set_running_or_notify_cancel():
            future.set_result(job(*arguments))


@dataclass(eq=False)
class Forward:
    """A batch in the model, which waits until it may end."""

    lane: int
    may_end: threading.Event
    fails: bool = False


class SteppedEncoder(FakeEncoder):
    """A `FakeEncoder` whose forwards end, or fail as a whole, only when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[Forward] = []
        self.begun: set[bytes] = set()  # keys of the entries that have started since it was cleared
        self._batch: dict[int, set[bytes]] = {}  # by lane, the keys that it runs, at once or in parts
        self._may_all_end = False

    def end(self, forward: Forward, *, fails: bool) -> None:
        """Lets a forward end."""
        self.inside.remove(forward)
        forward.fails = fails
        forward.may_end.set()

    def let_go(self) -> None:
        """Lets all current and future forwards end."""
        self._may_all_end = True
        for forward in self.inside:
            forward.may_end.set()

    @property
    def running(self) -> set[bytes]:
        """Keys of the entries whose batch is in the model."""
        return {key for forward in self.inside for key in self._batch[forward.lane]}

    def encode_images(self, batch: Sequence[PixelValues]) -> Embeddings:
        self._wait([pixels.tobytes() for pixels in batch])
        return super().encode_images(batch)

    def encode_texts(self, batch: Sequence[TokenIds]) -> Embeddings:
        self._wait(list(batch))
        return super().encode_texts(batch)

    def _wait(self, keys: list[bytes]) -> None:
        forward = Forward(threading.get_ident(), threading.Event())
        if not set(keys) < self._batch.get(forward.lane, set()):
            self.begun.update(keys)
            self._batch[forward.lane] = set(keys)
        self.inside.append(forward)
        if not self._may_all_end:
            forward.may_end.wait()
        if forward.fails and len(keys) > 1:
            raise RuntimeError("the whole batch fails")


@dataclass(eq=False)
class Asked:
    """A call in progress and its known state."""

    modality: str
    contents: list[str]
    call: CallContext
    task: asyncio.Task[Any]
    is_admitted: bool = False
    has_left: bool = False
    was_late: bool = False  # when it was cancelled
    was_given_up: bool = False

    def has(self, *kinds: str) -> bool:
        """Returns whether one of its items is of one of these kinds."""
        return any(content.startswith(kinds) for content in self.contents)

    def encoded(self, content: str) -> str | bytes:
        """Returns an item as the engine takes it."""
        return content if self.modality == "text" else content.encode()


_SPACES = " " * 20
# Few contents, so that equal items meet. A text's key is its words, so equal texts can differ in bytes.
_CONTENTS = st.builds(
    "{}{}{}".format,
    st.sampled_from([*["fine"] * 6, *["some more words "] * 2, "poison", "nan", "broken"]),
    st.integers(0, 9),
    st.sampled_from(["", _SPACES]),
)
_ITEMS = st.lists(_CONTENTS, min_size=1, max_size=4)
_SECONDS = st.sampled_from([None, None, 1.0, 5.0])  # to the deadline
_SOME = st.lists(st.integers(0, 9), min_size=1, max_size=3)
_FLOWS = st.builds(Flow, st.sampled_from("abc"), st.sampled_from(Priority))


class Batching(RuleBasedStateMachine):
    """One engine with all its parts, driven step by step; all work settles after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.loop = ClockedLoop(self.clock)
        self.loop_errors: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.loop_errors.append(context))
        self.until_end = ExitStack()
        self.until_end.enter_context(capture_logs())
        self.until_end.callback(self.loop.close)
        self.encoder = SteppedEncoder()
        for kind, keys in (("poison", self.encoder.failing), ("nan", self.encoder.not_finite)):
            for content in (f"{kind}{number}{spaces}" for number in range(10) for spaces in ("", _SPACES)):
                keys |= {self.encoder.key(content), self.encoder.key(content.encode())}
        self.pool = SteppedPool()
        self.metrics = Metrics(CollectorRegistry())
        self.asked: list[Asked] = []

    @initialize(lanes=st.integers(1, 3), max_batch_size=st.integers(1, 6))
    def start(self, lanes: int, max_batch_size: int) -> None:
        """Starts an empty engine."""
        self.lanes = lanes
        policies = {"image": BatchPolicy(max_batch_size), "text": BatchPolicy(max_batch_size, overhead=4)}
        self.scheduler = Scheduler(policies)
        observer = MetricsObserver(self.metrics, Tracing(None, 0.0))
        self.batcher = Batcher(self.encoder, self.scheduler, observer, lanes=lanes, clock=self.clock)
        self.engine = local_engine(
            self.encoder,
            self.batcher,
            self.pool,
            observer,
            decode_threads=2,
            limits=QueueLimits(MAX_ITEMS, MAX_BYTES),
            label_cache_size=1,
            cache_bytes=CacheBytes(image=0, text=1000),
            clock=self.clock,
        )
        self.until_end.callback(self._stop)
        self._do(self.batcher.start)

    @rule(contents=_ITEMS, seconds=_SECONDS, waits_for_room=st.booleans(), flow=_FLOWS)
    def ask_for_images(
        self, contents: list[str], seconds: float | None, waits_for_room: bool, flow: Flow
    ) -> None:
        """A call with images arrives."""
        self._do(partial(self._ask, "image", contents, seconds, waits_for_room=waits_for_room, flow=flow))

    @rule(contents=_ITEMS, seconds=_SECONDS, waits_for_room=st.booleans(), flow=_FLOWS)
    def ask_for_texts(
        self, contents: list[str], seconds: float | None, waits_for_room: bool, flow: Flow
    ) -> None:
        """A call with texts arrives."""
        self._do(partial(self._ask, "text", contents, seconds, waits_for_room=waits_for_room, flow=flow))

    @rule(numbers=_SOME, turns=st.integers(0, 4))
    def leave(self, numbers: list[int], turns: int) -> None:
        """Cancels calls, if there are any, some iterations of the event loop apart."""
        self._do(*(partial(self._leave, number) for number in numbers), turns=turns)

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0]), is_stuck=st.sampled_from([*[False] * 4, True]))
    def pass_time(self, seconds: float, is_stuck: bool) -> None:
        """Time passes, so deadlines expire; if the model is stuck, the watchdog gives up."""
        self._do(partial(self.clock.advance, seconds))
        if is_stuck:
            for asked in self._live():
                asked.was_given_up = True
            self._do(partial(self.batcher.give_up, lambda: ModelStalled("stuck")))

    @rule()
    def decode(self) -> None:
        """A thread decodes an image, if one waits."""
        if self.pool:
            self._do(self.pool.run_next)

    @rule(numbers=_SOME, fails=st.booleans(), fitting=st.sampled_from([None, None, 1, 2]))
    def end_forwards(self, numbers: list[int], fails: bool, fitting: int | None) -> None:
        """Forwards end, fail, or run out of memory above a number of entries."""
        self.encoder.max_batch_size = fitting
        for number in numbers:
            for forward in _pick(self.encoder.inside, number):
                self._do(partial(self.encoder.end, forward, fails=fails))

    @rule()
    def finish(self) -> None:
        """All work runs to its end while no new call arrives."""
        self.encoder.max_batch_size = None
        for _ in range(_MAX_STEPS):
            self._do(self._go_on)
            if not (self._live() or self.pool or self.encoder.inside):
                return
        raise AssertionError("a call is never answered")

    @invariant()
    def bounds_hold(self) -> None:
        """No queue is longer or larger than allowed."""
        for modality in MODALITIES:
            assert self.scheduler.waiting(modality) <= MAX_ITEMS
            assert self.scheduler.waiting_bytes(modality) <= MAX_BYTES

    @invariant()
    def entries_are_in_the_right_lines(self) -> None:
        """A waiting entry is in the line of each caller that wants it, and in no other."""
        for modality in MODALITIES:
            queue = self.scheduler._queues[modality]
            in_line: dict[Entry, set[Flow]] = defaultdict(set)
            for priority in Priority:
                for flow, line in queue.of(priority)._lines.items():
                    for entry in line.items:
                        in_line[entry].add(flow)
            assert in_line == {entry: {r.flow for r, _ in entry.places()} for entry in queue._entries}

    @invariant()
    def answers_are_right(self) -> None:
        """Each call gets its own embeddings, or an error that is possible for it."""
        for asked in self.asked:
            if asked.task.done():
                self._check_answer(asked)

    @invariant()
    def no_call_waits_beyond_its_deadline(self) -> None:
        """A text past its deadline that has no answer is in the model."""
        for asked in self._live():
            if asked.modality == "text" and asked.is_admitted and self._is_late(asked):
                assert self._keys(asked) & self.encoder.running

    @invariant()
    def counts_are_right(self) -> None:
        """Each item is in flight or counted with one outcome, the one that the caller has seen."""
        seen: Counter[tuple[str, str]] = Counter()
        for asked in self.asked:
            seen[asked.modality, _outcome(asked)] += len(asked.contents)
            seen[asked.modality, _ACCEPTED] += asked.is_admitted * len(asked.contents)
        for family in self.metrics.registry.restricted_registry(_ACCOUNT).collect():
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    key = sample.labels["modality"], sample.labels.get("outcome", sample.name)
                    assert sample.value == seen[key], key

    def teardown(self) -> None:
        """All work ends, and nothing is left."""
        with self.until_end:
            self.finish()
            self.answers_are_right()
            self.counts_are_right()
            for modality in MODALITIES:
                self._check_room_is_empty(modality, "a", [str(number) for number in range(OPEN_ITEMS - 1)])
                self._check_room_is_empty(modality, "b", ["j".ljust(OPEN_BYTES - 1)])
        assert not self.loop_errors

    def _ask(
        self,
        modality: str,
        contents: list[str],
        seconds: float | None = None,
        *,
        waits_for_room: bool,
        flow: Flow = ANONYMOUS,
    ) -> Asked:
        def admit() -> None:
            asked.is_admitted = True

        deadline = None if seconds is None else self.clock.now + seconds
        call = CallContext(deadline, waits_for_room, admit, flow)
        answer = (
            self.engine.embed_texts(contents, call)
            if modality == "text"
            else self.engine.embed_images([content.encode() for content in contents], call)
        )
        asked = Asked(modality, contents, call, self.loop.create_task(answer))
        self.asked.append(asked)
        return asked

    def _leave(self, number: int) -> None:
        for asked in _pick(self._live(), number):
            asked.has_left, asked.was_late = True, self._is_late(asked)
            asked.task.cancel()

    def _do(self, *steps: Callable[[], object], turns: int = 0) -> None:
        """Takes steps, some iterations of the event loop apart, and waits until all is settled."""
        wanted = self._wanted()
        self.encoder.begun.clear()

        async def take() -> None:
            for step in steps:
                step()
                for _ in range(turns):
                    await asyncio.sleep(0)
            await self._rest()

        self.loop.run_until_complete(take())
        assert self.encoder.begun <= wanted | self._wanted()  # cancelled work does not run

    async def _rest(self) -> None:
        """Returns once every lane is in a forward, or idle with nothing to take."""
        await settle()
        while not self._is_at_rest():
            await asyncio.sleep(0)
        await settle()

    def _is_at_rest(self) -> bool:
        idle, waiting = self.batcher._scheduler.idle_lanes, sum(map(self.scheduler.waiting, MODALITIES))
        return idle + len(self.encoder.inside) == self.lanes and not (idle and waiting)

    def _go_on(self) -> None:
        while self.pool:
            self.pool.run_next()
        for forward in list(self.encoder.inside):
            self.encoder.end(forward, fails=False)

    def _check_room_is_empty(self, modality: str, first: str, rest: Sequence[str]) -> None:
        """Fills a modality's room exactly, while the lanes are busy and nothing is decoded.

        Texts that were asked for before may be in the cache, and would neither keep a lane busy nor wait.
        """
        for _ in range(self.lanes):
            self._do(partial(self._ask, modality, [f"plug {len(self.asked)}"], waits_for_room=True))
            while self.pool:
                self._do(self.pool.run_next)
        for contents in ([first], [*rest], ["z"]):
            self._do(partial(self._ask, modality, contents, waits_for_room=True))
        assert [asked.is_admitted for asked in self.asked[-3:]] == [True, True, False]
        self.finish()

    def _check_answer(self, asked: Asked) -> None:
        if asked.task.cancelled():
            assert asked.has_left
            return
        error = asked.task.exception()
        if error is None:
            assert not asked.has("poison", "nan")
            for content, embedding in zip(asked.contents, asked.task.result().embeddings, strict=True):
                np.testing.assert_array_equal(embedding, self.encoder.embedding_of(asked.encoded(content)))
        elif isinstance(error, InferenceFailed):
            assert asked.has("poison", "nan")
        elif isinstance(error, ExpiredInQueue):
            assert self._is_late(asked)
        elif isinstance(error, ModelStalled):
            assert asked.was_given_up
        elif isinstance(error, InvalidArgument):
            assert asked.modality == "image"
            assert asked.has("broken")
        else:
            assert isinstance(error, ServingError)
            assert error.reason in _REFUSALS
            assert not asked.call.waits_for_room
            assert not asked.is_admitted

    def _is_late(self, asked: Asked) -> bool:
        return asked.call.deadline is not None and self.clock.now >= asked.call.deadline

    def _stop(self) -> None:
        self.encoder.let_go()
        self.engine.close()
        assert self.loop.run_until_complete(self.batcher.stop(30.0))

    def _live(self) -> list[Asked]:
        return [asked for asked in self.asked if not asked.task.done()]

    def _wanted(self) -> set[bytes]:
        """Returns the keys of all items that callers wait for."""
        return {key for asked in self._live() for key in self._keys(asked)}

    def _keys(self, asked: Asked) -> set[bytes]:
        is_image = asked.modality == "image"
        readable = [content for content in asked.contents if not (is_image and content.startswith("broken"))]
        return {self.encoder.key(asked.encoded(content)) for content in readable}


_ACCEPTED, _IN_FLIGHT = "alignserve_items_accepted_total", "alignserve_items_in_flight"
_ACCOUNT = [_ACCEPTED, _IN_FLIGHT, "alignserve_items_total"]


def _pick(choices: Sequence[_T], number: int) -> Sequence[_T]:
    """Returns one of the choices, if there are any.

    Rules without a choice do nothing instead of being skipped. Skipping would depend on thread timing, which
    hypothesis would report as a flaky test.
    """
    return [choices[number % len(choices)]] if choices else []


def _outcome(asked: Asked) -> str:
    """Returns how a call's items must be counted."""
    if not asked.is_admitted:
        return "refused"
    if not asked.task.done():
        return _IN_FLIGHT
    if asked.task.cancelled():
        return "expired" if asked.was_late else "cancelled"
    error = asked.task.exception()
    if error is None:
        return "ok"
    return "expired" if isinstance(error, ExpiredInQueue) else "failed"


TestBatching = Batching.TestCase
