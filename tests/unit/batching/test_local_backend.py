"""The backend of this process, called with callbacks, without a task for each request."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from itertools import count

import numpy as np
import pytest
from alignserve_server.batching.admission import QueueLimits
from alignserve_server.batching.backend import AdmissionRequest, PreparedItems
from alignserve_server.batching.batcher import Batcher
from alignserve_server.batching.fair_queue import ANONYMOUS
from alignserve_server.batching.local_backend import CacheBytes, LocalBackend
from alignserve_server.batching.request import Answer, Embedded
from alignserve_server.batching.scheduler import BatchPolicy, Scheduler
from alignserve_server.errors import ExpiredInQueue, InferenceFailed, QueueFull
from alignserve_server.observability.batch_observer import MetricsObserver
from structlog.testing import capture_logs

from tests.unit.fakes import WatchedEncoder, settle

MAX_ITEMS, OPEN_ITEMS = 256, 192  # in total, and the most that calls which wait for room may fill
_numbers = count(1)


@pytest.fixture
def encoder() -> WatchedEncoder:
    return WatchedEncoder()


@pytest.fixture
async def batcher(encoder: WatchedEncoder, observer: MetricsObserver) -> AsyncIterator[Batcher]:
    scheduler = Scheduler({modality: BatchPolicy(8, overhead=100) for modality in ("image", "text")})
    batcher = Batcher(encoder, scheduler, observer, lanes=1)
    batcher.start()
    yield batcher
    encoder.resume()
    assert await batcher.stop(30.0)


@pytest.fixture
async def backend(encoder: WatchedEncoder, batcher: Batcher, observer: MetricsObserver) -> LocalBackend:
    caches = CacheBytes(image=100_000, text=100_000)
    return LocalBackend(encoder.info, batcher, observer, QueueLimits(MAX_ITEMS, 1 << 20), caches)


class Asked:
    """A request for texts, and the answers that it gets."""

    def __init__(
        self, backend: LocalBackend, encoder: WatchedEncoder, *texts: str, deadline: float | None = None
    ) -> None:
        self.reservation = next(_numbers)
        self.answers: list[Answer] = []
        self.answered = asyncio.Event()
        request = AdmissionRequest(
            "text", len(texts), len(texts), ANONYMOUS, deadline, waits_for_room=deadline is not None
        )
        assert backend.request_room(self.reservation, request) is None
        tokens = [encoder.tokenize(text, truncate=False).token_ids for text in texts]
        backend.submit(self.reservation, PreparedItems.of_texts(tokens, [1] * len(texts)), self.take)

    def take(self, answer: Answer) -> None:
        self.answers.append(answer)
        self.answered.set()

    async def answer(self) -> Answer:
        await self.answered.wait()
        (answer,) = self.answers
        return answer


async def _occupy(backend: LocalBackend, encoder: WatchedEncoder) -> Asked:
    """Keeps the lane busy until `encoder.resume`."""
    encoder.hold()
    plug = Asked(backend, encoder, "plug")
    await encoder.begun()
    return plug


def _rows(encoder: WatchedEncoder, *texts: str) -> list[np.ndarray]:
    return [encoder.embedding_of(text) for text in texts]


async def test_a_request_is_answered_once_with_all_its_embeddings(backend, encoder):
    """In the order of its items."""
    texts = ["a b c", "d", "e f", *(f"g {number}" for number in range(20))]

    answer = await Asked(backend, encoder, *texts).answer()

    assert isinstance(answer, Embedded)
    np.testing.assert_array_equal(answer.embeddings, _rows(encoder, *texts))


async def test_cached_texts_are_answered_before_submit_returns(backend, encoder):
    """No lane has to run."""
    await Asked(backend, encoder, "a", "b").answer()

    (answer,) = Asked(backend, encoder, "b", "a", "b").answers

    assert isinstance(answer, Embedded)
    np.testing.assert_array_equal(answer.embeddings, _rows(encoder, "b", "a", "b"))
    assert (answer.cached_items, answer.batch_size, answer.runs) == (3, 0, frozenset())


async def test_cached_and_new_texts_come_in_order(backend, encoder):
    """Only the new ones run."""
    await Asked(backend, encoder, "a", "b").answer()

    answer = await Asked(backend, encoder, "new", "b", "newer", "a").answer()

    assert isinstance(answer, Embedded)
    np.testing.assert_array_equal(answer.embeddings, _rows(encoder, "new", "b", "newer", "a"))
    assert (answer.cached_items, answer.batch_size) == (2, 2)


async def test_a_released_request_leaves_the_queue_and_gets_no_answer(backend, encoder, batcher):
    """Its room is free at once."""
    plug = await _occupy(backend, encoder)
    gone = Asked(backend, encoder, *map(str, range(OPEN_ITEMS - 1)))

    backend.release(gone.reservation, is_served=False)
    backend.release(gone.reservation)
    stays = Asked(backend, encoder, *map(str, range(OPEN_ITEMS - 1)))
    encoder.resume()
    await asyncio.gather(plug.answer(), stays.answer())

    assert gone.answers == []
    assert len(encoder.seen) == OPEN_ITEMS


async def test_a_request_released_while_it_runs_gets_no_answer(backend, encoder):
    """The batch still runs to its end."""
    plug = await _occupy(backend, encoder)

    backend.release(plug.reservation, is_served=False)
    encoder.resume()
    await Asked(backend, encoder, "next").answer()

    assert plug.answers == []


async def test_an_answered_request_has_ended_its_reservation(backend, encoder):
    """Room need not be released."""
    for _ in range(3):
        plug = await _occupy(backend, encoder)
        asked = Asked(backend, encoder, *(f"{next(_numbers)}" for _ in range(OPEN_ITEMS - 1)))
        encoder.resume()
        await asyncio.gather(plug.answer(), asked.answer())

    assert len(asked.answers) == 1


async def test_a_failed_item_answers_its_request_at_once(backend, encoder, monkeypatch):
    """Its items that still wait leave the queue; another request of the batch gets its embeddings."""
    encode = encoder.encode_texts

    def encode_and_hold(batch):
        try:
            return encode(batch)
        except RuntimeError:
            if len(batch) == 1:
                encoder.hold()
            raise

    plug = await _occupy(backend, encoder)
    monkeypatch.setitem(backend._batcher._lanes[0]._encode, "text", encode_and_hold)
    encoder.failing = {encoder.key("is poison")}
    neighbour = Asked(backend, encoder, "is neighbour")
    failing = Asked(backend, encoder, *(f"is {name}" for name in [*range(6), "poison", *range(6, 20)]))

    with capture_logs():
        encoder.resume()
        answer = await failing.answer()
        encoder.resume()
        await asyncio.gather(plug.answer(), neighbour.answer())
        await Asked(backend, encoder, "last").answer()

    assert isinstance(answer, InferenceFailed)
    assert isinstance(neighbour.answers[0], Embedded)
    assert encoder.key("is 19") not in encoder.seen
    assert len(failing.answers) == 1


async def test_an_expired_request_leaves_others_in_the_queue(backend, encoder):
    """Although they share its entries."""
    plug = await _occupy(backend, encoder)
    patient = Asked(backend, encoder, "a", "b")
    hasty = Asked(backend, encoder, "b", "c", deadline=asyncio.get_running_loop().time() + 0.01)

    expired = await hasty.answer()
    encoder.resume()
    await asyncio.gather(plug.answer(), patient.answer())

    assert isinstance(expired, ExpiredInQueue)
    assert isinstance(patient.answers[0], Embedded)
    assert encoder.key("c") not in encoder.seen


async def test_a_callback_that_raises_does_not_keep_the_batch_from_others(backend, encoder):
    """Its error goes to the loop's exception handler."""
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
    plug = await _occupy(backend, encoder)
    broken, neighbour = Asked(backend, encoder, "a"), Asked(backend, encoder, "b")
    del broken.answered  # its callback needs it

    encoder.resume()
    await asyncio.gather(plug.answer(), neighbour.answer())

    assert [type(error) for error in errors] == [AttributeError]


async def test_a_batch_is_counted_before_its_requests_are_answered(backend, encoder, metrics):
    """A front process learns of a batch before the results."""
    counted: list[float | None] = []
    asked = Asked(backend, encoder, "a")
    asked.answered.set = lambda: counted.append(  # type: ignore[method-assign]
        metrics.registry.get_sample_value("alignserve_batch_size_sum", {"modality": "text"})
    )

    while not asked.answers:
        await asyncio.sleep(0)

    assert counted == [1]


async def test_a_call_that_waits_for_room_learns_when_it_has_some(backend, encoder):
    """Until then it can leave."""
    plug = await _occupy(backend, encoder)
    waiting = AdmissionRequest("text", OPEN_ITEMS, OPEN_ITEMS, ANONYMOUS, waits_for_room=True)
    holds, leaves, comes = (next(_numbers) for _ in range(3))
    assert backend.request_room(holds, waiting) is None
    left, turn = backend.request_room(leaves, waiting), backend.request_room(comes, waiting)
    backend.release(leaves)
    was_done = turn.done()

    backend.release(holds)

    assert not was_done
    await turn
    assert not left.done()
    backend.release(comes)
    encoder.resume()
    await plug.answer()


async def test_a_refused_call_holds_nothing(backend, encoder):
    """There is no reservation to release."""
    plug = await _occupy(backend, encoder)
    Asked(backend, encoder, "a")

    with pytest.raises(QueueFull):
        backend.request_room(7_000_000, AdmissionRequest("text", MAX_ITEMS, 1, ANONYMOUS))

    backend.release(7_000_000)
    encoder.resume()
    await plug.answer()


async def test_payloads_are_freed_with_the_answer(backend, encoder):
    """Pixels may be memory that a front process shares and wants back."""
    pixels = [encoder.preprocess_image(b"%d" % number).copy() for number in range(20)]
    alive = [weakref.ref(each) for each in pixels]
    reservation = next(_numbers)
    backend.request_room(reservation, AdmissionRequest("image", 20, 20, ANONYMOUS))
    answered = asyncio.Event()

    gc.disable()
    try:
        items = PreparedItems(pixels, [1] * 20, [b"key %d" % number for number in range(20)])
        backend.submit(reservation, items, lambda _: answered.set())
        del pixels, items
        await answered.wait()
        await settle()
        await Asked(backend, encoder, "next").answer()  # by then, the lane has dropped the last batch
        kept = [each for each in alive if each() is not None]
    finally:
        gc.enable()

    assert kept == []


async def test_a_waiting_item_is_a_single_object_for_the_collector(backend, encoder):
    """A request of 64 items makes as many, and some for itself: the collector's work grows with them."""
    plug = await _occupy(backend, encoder)
    texts = [f"text {number}" for number in range(64)]
    Asked(backend, encoder, *(f"earlier {number}" for number in range(64)))  # makes room in tables

    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        asked = Asked(backend, encoder, *texts)
        made = len(gc.get_objects()) - before
    finally:
        gc.enable()

    assert made <= 64 + 24
    encoder.resume()
    await asyncio.gather(plug.answer(), asked.answer())
