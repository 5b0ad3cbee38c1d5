"""Lanes run batches for all callers and survive any error in them."""

from __future__ import annotations

import asyncio
import math
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from unittest.mock import Mock

import numpy as np
import pytest
from alignserve_server.batching.batcher import Batcher
from alignserve_server.batching.request import Embedded
from alignserve_server.batching.scheduler import BatchPolicy, Scheduler
from alignserve_server.errors import ExpiredInQueue, InferenceFailed, ModelStalled, ShuttingDown
from alignserve_server.model.encoder import OutOfDeviceMemory
from alignserve_server.observability.batch_observer import MetricsObserver
from alignserve_server.observability.metrics import Metrics
from structlog.testing import capture_logs
from structlog.typing import EventDict

from tests.unit.fakes import FakeClock, WatchedEncoder, settle, submit, submit_each

_TIMEOUT_SECONDS = 30.0  # reached only by a failing test
_HOUR_SECONDS = 3600.0

Run = Callable[..., AbstractAsyncContextManager[Batcher]]


@pytest.fixture
def encoder() -> WatchedEncoder:
    return WatchedEncoder()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[EventDict]]:
    with capture_logs() as lines:
        yield lines


@pytest.fixture
def run(encoder: WatchedEncoder, clock: FakeClock, observer: MetricsObserver) -> Run:
    @asynccontextmanager
    async def run_until_empty(
        *, max_batch_size: int = 8, max_queue_delay_seconds: float = 0.0, lanes: int = 1
    ) -> AsyncIterator[Batcher]:
        policies = {modality: BatchPolicy(max_batch_size, overhead=100) for modality in ("image", "text")}
        scheduler = Scheduler(policies, max_queue_delay_seconds)
        batcher = Batcher(encoder, scheduler, observer, lanes=lanes, clock=clock)
        batcher.start()
        try:
            yield batcher
        finally:
            encoder.resume()
            assert await batcher.stop(_TIMEOUT_SECONDS)

    return run_until_empty


@pytest.fixture
async def batcher(run: Run) -> AsyncIterator[Batcher]:
    """One lane, batches of up to 8."""
    async with run() as batcher:
        yield batcher


def _keys(encoder: WatchedEncoder, *contents: bytes) -> list[bytes]:
    return [encoder.key(content) for content in contents]


async def _occupy(batcher: Batcher, encoder: WatchedEncoder) -> asyncio.Future[Embedded]:
    """Keeps a lane busy with one image until `encoder.resume`."""
    encoder.hold()
    future = submit(batcher, encoder, b"first")
    await encoder.begun()
    return future


def _queued(metrics: Metrics) -> tuple[float | None, ...]:
    """Returns how many images wait, and their bytes."""
    names = ("alignserve_queue_entries", "alignserve_queue_bytes")
    return tuple(metrics.registry.get_sample_value(name, {"modality": "image"}) for name in names)


async def _outcomes(futures: Sequence[asyncio.Future[Embedded]]) -> list[str]:
    answers = await asyncio.gather(*futures, return_exceptions=True)
    return ["ok" if isinstance(answer, Embedded) else type(answer).__name__ for answer in answers]


async def test_every_image_gets_its_own_embedding(batcher, encoder):
    """Several callers share a batch, and each gets its own results."""
    first = await _occupy(batcher, encoder)
    one = submit(batcher, encoder, b"a", b"b")
    other = submit(batcher, encoder, b"c")

    encoder.resume()
    results = await asyncio.gather(first, one, other)

    assert encoder.batch_sizes == [1, 3]
    embeddings = np.concatenate([result.embeddings for result in results])
    expected = [encoder.embedding_of(content) for content in (b"first", b"a", b"b", b"c")]
    np.testing.assert_array_equal(embeddings, expected)


async def test_a_burst_that_arrives_bit_by_bit_shares_a_batch(batcher, encoder, monkeypatch):
    """An idle lane is woken once no more requests come, not by the first of them."""
    monkeypatch.setattr("alignserve_server.batching.batcher._MAX_WAKING_SECONDS", _HOUR_SECONDS)
    while not batcher.has_idle_lanes:
        await asyncio.sleep(0)
    burst = []
    for number in range(5):
        burst += submit_each(batcher, encoder, b"%d" % number)
        for _ in range(2):  # the second one brings no request
            await asyncio.sleep(0)
            time.sleep(0.005)  # noqa: ASYNC251 — gives way to a lane, if one is awake

    await asyncio.gather(*burst)

    assert encoder.batch_sizes == [5]


async def test_requests_that_keep_coming_do_not_keep_a_lane_idle(batcher, encoder):
    """A lane is woken after some iterations of the loop, even if each of them brings a request."""
    submitted: list[asyncio.Future[Embedded]] = []
    encoder.hold()
    beginning = asyncio.create_task(encoder.begun())

    while not beginning.done():
        submitted += submit_each(batcher, encoder, b"%d" % len(submitted))
        await asyncio.sleep(0)

    encoder.resume()
    assert await _outcomes(submitted) == ["ok"] * len(submitted)


async def test_expensive_calls_of_others_do_not_keep_a_lane_idle(batcher, encoder, monkeypatch):
    """However long an iteration of the loop takes, a request waits for a moment only."""
    monkeypatch.setattr("alignserve_server.batching.batcher._QUIET_ITERATIONS", math.inf)
    monkeypatch.setattr("alignserve_server.batching.batcher._MAX_ITERATIONS", math.inf)

    assert await _outcomes(submit_each(batcher, encoder, b"a")) == ["ok"]


async def test_texts_grouped_by_length_come_back_in_order(batcher, encoder):
    """Results keep the order of the call, whatever the order of the batch."""
    texts = ["five words are in this", "one", "three words here"]

    result = await submit(batcher, encoder, *texts)

    assert encoder.seen == [encoder.key(text) for text in sorted(texts, key=len)]
    np.testing.assert_array_equal(result.embeddings, [encoder.embedding_of(text) for text in texts])


async def test_a_request_of_several_batches_gets_its_results_in_order(run, encoder):
    """Batches fill the answer, whatever items of the request each of them has."""
    texts = [f"{'more ' * (number % 3)}word {number}" for number in range(10)]

    async with run(max_batch_size=2) as batcher:
        result = await submit(batcher, encoder, *texts)

    assert encoder.batch_sizes == [2] * 5
    np.testing.assert_array_equal(result.embeddings, [encoder.embedding_of(text) for text in texts])
    assert len(result.runs) == 5


async def test_a_result_has_its_timings(batcher, encoder, clock):
    """A result has the time in the queue, the time in the model and the batch size."""
    first = await _occupy(batcher, encoder)
    clock.advance(2.0)
    later = submit(batcher, encoder, b"a", b"b")
    clock.advance(3.0)

    encoder.resume()
    results = await asyncio.gather(first, later)

    assert [(each.queue_seconds, each.compute_seconds, each.batch_size) for each in results] == [
        (0.0, 5.0, 1),
        (3.0, 0.0, 2),
    ]


async def test_batches_are_counted(batcher, encoder, clock, metrics):
    """By the time a caller has its result, the metrics include the batch."""
    future = await _occupy(batcher, encoder)
    clock.advance(2.0)

    encoder.resume()
    await future

    value = metrics.registry.get_sample_value
    assert value("alignserve_batch_size_sum", {"modality": "image"}) == 1
    assert value("alignserve_queue_wait_seconds_count", {"modality": "image"}) == 1
    assert value("alignserve_device_busy_seconds_total") == 2.0
    assert value("alignserve_last_forward_timestamp_seconds") > 0


@pytest.mark.parametrize("contents", ["A", "aB", "Abcde", "abcDefgh", "aBcDefgH"])
@pytest.mark.parametrize("kind", ["failing", "not_finite"])
async def test_a_poisonous_entry_fails_by_itself(batcher, encoder, kind, contents):
    """Whether it (a capital) fails its batch or becomes NaN, the other entries get their results."""
    images = [content.encode() for content in contents]
    getattr(encoder, kind).update(encoder.key(image) for image in images if image.isupper())

    outcomes = await _outcomes(submit_each(batcher, encoder, *images))

    assert encoder.batch_sizes[0] == len(images)
    assert outcomes == ["InferenceFailed" if image.isupper() else "ok" for image in images]


async def test_a_failure_has_the_id_of_its_log_line(batcher, encoder, logs):
    """The caller gets an id instead of the cause; the log has both."""
    encoder.failing.update(_keys(encoder, b"a"))

    with pytest.raises(InferenceFailed) as failed:
        await submit(batcher, encoder, b"a")

    (line,) = logs
    assert line["error_id"] == failed.value.metadata["error_id"]
    assert line["error_id"] in failed.value.message
    assert "poisonous" in str(line["exc_info"])
    assert "poisonous" not in failed.value.message


async def test_out_of_memory_halves_the_largest_batch(run, encoder, metrics):
    """All entries get their results, and the next batch stays below the size that failed."""
    encoder.max_batch_size = 2
    images = [str(number).encode() for number in range(8)]

    async with run(max_batch_size=8) as batcher:
        outcomes = await _outcomes(submit_each(batcher, encoder, *images))
        await submit(batcher, encoder, *images[:4])

    assert outcomes == ["ok"] * 8
    assert encoder.batch_sizes == [8, 4, 2, 2, 4, 2, 2, 2, 2]
    value = metrics.registry.get_sample_value
    assert value("alignserve_batch_splits_total", {"reason": "out_of_memory"}) == 3


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30, np.inf])
async def test_a_vector_without_a_direction_is_a_failure(batcher, encoder, monkeypatch, value):
    """It cannot be normalized and would be served as zeros; the other entries of its batch succeed."""
    rows = np.array([[1.0] * 8, [value] * 8], np.float32)
    monkeypatch.setattr(encoder, "_forward", lambda _, batch: rows[: len(batch)])

    outcomes = await _outcomes(submit_each(batcher, encoder, b"a", b"b"))

    assert outcomes == ["ok", "InferenceFailed"]


@pytest.mark.parametrize("error", [OutOfDeviceMemory, RuntimeError])
async def test_a_failed_forward_frees_its_memory_before_its_halves_run(batcher, encoder, monkeypatch, error):
    """Its traceback does not hold its memory while the retries need it."""
    forwards: weakref.WeakSet[_Activations] = weakref.WeakSet()
    alive_before: list[int] = []

    def forward(batch):
        alive_before.append(len(forwards))
        activations = _Activations()
        forwards.add(activations)
        if len(batch) > 1:
            raise error("too large")
        return np.ones((len(batch), 8), np.float32)

    monkeypatch.setattr(encoder, "_forward", lambda _, batch: forward(batch))

    outcomes = await _outcomes(submit_each(batcher, encoder, b"a", b"b", b"c", b"d"))

    assert outcomes == ["ok"] * 4
    assert alive_before == [0] * 7


class _Activations:
    """The memory of a forward."""


async def test_an_entry_that_does_not_fit_by_itself_fails(batcher, encoder):
    """The lane keeps running later entries that fit."""
    encoder.max_batch_size = 0
    outcomes = await _outcomes(submit_each(batcher, encoder, b"a", b"b"))

    encoder.max_batch_size = None
    later = await _outcomes(submit_each(batcher, encoder, b"c"))

    assert (outcomes, later) == (["InferenceFailed"] * 2, ["ok"])


class BrokenRoom:
    """Room that cannot be released."""

    def release(self, _items: int, _size_bytes: int) -> None:
        raise KeyError


async def test_room_that_raises_does_not_stop_the_lane(batcher, encoder):
    """The error goes to the loop's exception handler, and callers get their results."""
    errors = _collect_loop_errors()

    outcomes = [await _outcomes([submit(batcher, encoder, b"a", room=BrokenRoom())]) for _ in range(2)]

    assert outcomes == [["ok"], ["ok"]]
    assert errors == [KeyError, KeyError]


async def test_an_observer_that_raises_does_not_stop_the_lane(batcher, encoder, observer, monkeypatch):
    """Callers get their results even if counting them fails."""
    errors = _collect_loop_errors()
    monkeypatch.setattr(observer.of("image"), "_batch_size", None)

    outcomes = [await _outcomes([submit(batcher, encoder, b"a")]) for _ in range(2)]

    assert outcomes == [["ok"], ["ok"]]
    assert errors == [AttributeError, AttributeError]


def _collect_loop_errors() -> list[type[Exception]]:
    errors: list[type[Exception]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(type(context["exception"])))
    return errors


async def test_a_cancelled_entry_never_reaches_the_device(batcher, encoder, metrics):
    """It leaves the queue at once, and so do its bytes."""
    first = await _occupy(batcher, encoder)
    gone, stays = submit_each(batcher, encoder, b"gone", b"stays")

    gone.cancel()
    await settle()

    assert _queued(metrics) == (1, len(b"stays"))
    encoder.resume()
    await asyncio.gather(first, stays)
    assert encoder.seen == _keys(encoder, b"first", b"stays")


async def test_cancelling_does_not_disturb_a_running_batch(batcher, encoder):
    """The batch runs to its end, and its other entries get their results."""
    encoder.hold()
    gone, stays = submit_each(batcher, encoder, b"gone", b"stays")
    await encoder.begun()

    gone.cancel()
    encoder.resume()

    assert await _outcomes([gone, stays]) == ["CancelledError", "ok"]


async def test_an_entry_expires_while_the_lane_is_busy(batcher, encoder, clock, metrics):
    """It is answered at its deadline, not after the running batch, and never runs."""
    first = await _occupy(batcher, encoder)
    deadline = asyncio.get_running_loop().time()
    late = submit_each(batcher, encoder, b"a", b"b", deadline=deadline)
    clock.advance(2.0)

    outcomes = await _outcomes(late)

    assert outcomes == ["ExpiredInQueue"] * 2
    assert "2.000 s in the queue" in str(late[0].exception())
    assert _queued(metrics) == (0, 0)
    encoder.resume()
    await first
    assert encoder.seen == _keys(encoder, b"first")


async def test_an_entry_on_the_device_does_not_expire(run, encoder, monkeypatch):
    """Of two entries with the same deadline, only the waiting one expires."""
    loop = asyncio.get_running_loop()
    real_time, deadline = loop.time, loop.time() + _HOUR_SECONDS
    encoder.hold()

    async with run(max_batch_size=1) as batcher:
        futures = submit_each(batcher, encoder, b"runs", b"waits", deadline=deadline)
        await encoder.begun()
        monkeypatch.setattr(loop, "time", lambda: real_time() + _HOUR_SECONDS)
        with pytest.raises(ExpiredInQueue):
            await futures[1]
        encoder.resume()
        outcomes = await _outcomes(futures)

    assert outcomes == ["ok", "ExpiredInQueue"]


async def test_room_is_freed_on_the_event_loop_when_a_lane_takes_items(run, encoder):
    """Each batch frees the room of its items, on the loop's thread, before their results arrive."""
    freed: list[tuple[int, int, threading.Thread]] = []

    class Room:
        def release(self, items: int, size_bytes: int) -> None:
            freed.append((items, size_bytes, threading.current_thread()))

    async with run(max_batch_size=2) as batcher:
        first = await _occupy(batcher, encoder)
        later = submit(batcher, encoder, b"12", b"345", b"6", room=Room())
        await settle()
        freed_before = list(freed)
        encoder.resume()
        await asyncio.gather(first, later)

    assert freed_before == []
    assert freed == [(2, 5, threading.current_thread()), (1, 1, threading.current_thread())]


async def test_each_lane_runs_its_own_batch(run, encoder):
    """Two lanes run two forwards at the same time."""
    encoder.hold()

    async with run(max_batch_size=1, lanes=2) as batcher:
        answer = submit(batcher, encoder, b"a", b"b")
        await encoder.begun()
        await encoder.begun()
        encoder.resume()
        await answer

    assert encoder.batch_sizes == [1, 1]


@pytest.mark.parametrize(("has_parallel_lanes", "batch_sizes"), [(True, [1, 1]), (False, [2])])
async def test_idle_lanes_share_entries_if_that_saves_time(run, encoder, has_parallel_lanes, batch_sizes):
    """Lanes that take turns on a device run one batch of two rather than two batches of one."""
    encoder.has_parallel_lanes = has_parallel_lanes

    async with run(lanes=2) as batcher:
        while batcher._scheduler.idle_lanes < 2:
            await asyncio.sleep(0)
        await submit(batcher, encoder, b"a", b"b")

    assert encoder.batch_sizes == batch_sizes


async def test_a_lane_that_waits_for_more_wakes_when_its_batch_is_full(run, encoder):
    """A queue delay holds back only a batch that is not full."""
    async with run(max_batch_size=2, max_queue_delay_seconds=_HOUR_SECONDS) as batcher:
        first = submit(batcher, encoder, b"a")
        await settle()
        await asyncio.gather(first, submit(batcher, encoder, b"b"))

    assert encoder.batch_sizes == [2]


async def test_the_queue_is_observable(batcher, encoder, clock, metrics):
    """The metrics show entries and bytes; the batcher reports the age of the running batch."""
    await _occupy(batcher, encoder)
    submit(batcher, encoder, b"12", b"345")

    clock.advance(7.0)

    assert _queued(metrics) == (2, 5)
    assert batcher.longest_running_seconds() == 7.0


@pytest.mark.parametrize("lanes", [1, 2])
async def test_stop_runs_waiting_entries(run, encoder, lanes):
    """Every accepted entry gets its result before the lanes end."""
    async with run(max_batch_size=1, lanes=lanes) as batcher:
        first = await _occupy(batcher, encoder)
        waiting = submit_each(batcher, encoder, b"a", b"b", b"c")
        stopping = asyncio.create_task(batcher.stop(_TIMEOUT_SECONDS))
        await settle()
        encoder.resume()

        assert await stopping
        assert [future.done() for future in (first, *waiting)] == [True] * 4


async def test_stop_does_not_wait_for_a_fuller_batch(run, encoder):
    """Entries held back by a queue delay run at once."""
    async with run(max_queue_delay_seconds=_HOUR_SECONDS) as batcher:
        answer = submit(batcher, encoder, b"a")
        await settle()

        assert await batcher.stop(_TIMEOUT_SECONDS)
        assert await _outcomes([answer]) == ["ok"]


async def test_stop_returns_whether_a_lane_is_still_busy(batcher, encoder):
    """A forward that does not end does not block the stop."""
    await _occupy(batcher, encoder)

    assert not await batcher.stop(0.0)


async def test_an_encoder_that_loses_a_row_fails_the_batch_but_not_the_lane(batcher, encoder, monkeypatch):
    """A wrong number of rows fails the batch: all callers get an answer, and the lane keeps running."""
    whole = encoder._forward
    monkeypatch.setattr(encoder, "_forward", lambda *batch: whole(*batch)[1:])
    lost = await _outcomes(submit_each(batcher, encoder, b"a", b"b"))

    monkeypatch.setattr(encoder, "_forward", whole)
    found = await _outcomes(submit_each(batcher, encoder, b"c"))

    assert (lost, found) == (["InferenceFailed", "InferenceFailed"], ["ok"])


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
async def test_a_lane_that_dies_is_noticed(encoder, observer, monkeypatch, logs, error):
    """An error that ends a thread is logged and visible to the watchdog."""
    monkeypatch.setattr(encoder, "enter_lane", Mock(side_effect=error))
    batcher = Batcher(
        encoder, Scheduler({"image": BatchPolicy(1), "text": BatchPolicy(1)}), observer, lanes=1
    )

    batcher.start()
    await batcher.stop(_TIMEOUT_SECONDS)

    assert batcher.has_dead_lane
    assert [line["event"] for line in logs] == ["lane_died"]


async def test_nothing_is_queued_once_the_lanes_stop(encoder, observer):
    """Items that no lane would run are refused, so that their callers do not wait."""
    batcher = Batcher(
        encoder, Scheduler({"image": BatchPolicy(1), "text": BatchPolicy(1)}), observer, lanes=1
    )
    batcher.start()
    await batcher.stop(_TIMEOUT_SECONDS)

    with pytest.raises(ShuttingDown):
        await submit(batcher, encoder, b"late")


async def test_giving_up_answers_all_calls_and_keeps_the_lanes_running(batcher, encoder):
    """Running and waiting items fail at once; late results are dropped, and new items run."""
    encoder.hold()
    running = submit_each(batcher, encoder, b"a")
    await encoder.begun()
    waiting = submit_each(batcher, encoder, b"b", b"c")

    batcher.give_up(lambda: ModelStalled("stuck"))
    outcomes = await asyncio.gather(*running, *waiting, return_exceptions=True)
    encoder.resume()
    after = submit(batcher, encoder, b"b")

    assert [type(outcome) for outcome in outcomes] == [ModelStalled] * 3
    assert isinstance(await after, Embedded)
    assert encoder.seen == [encoder.key(b"a"), encoder.key(b"b")]
