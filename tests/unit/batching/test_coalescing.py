"""Equal items that wait at the same time share one entry and one result."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from alignserve_server.batching.admission import AdmissionController, QueueLimits
from alignserve_server.batching.backend import PreparedItems
from alignserve_server.batching.batcher import Batcher
from alignserve_server.batching.fair_queue import Flow, Priority
from alignserve_server.batching.request import Embedded
from alignserve_server.batching.scheduler import BatchPolicy, Scheduler
from alignserve_server.errors import ExpiredInQueue, InferenceFailed
from alignserve_server.observability.batch_observer import MetricsObserver
from alignserve_server.observability.metrics import Metrics

from tests.unit.fakes import WatchedEncoder, settle, submit, submit_each

_TIMEOUT_SECONDS = 30.0  # reached only by a failing test


@pytest.fixture
def encoder() -> WatchedEncoder:
    return WatchedEncoder()


@pytest.fixture
async def batcher(encoder: WatchedEncoder, observer: MetricsObserver):
    """One lane, busy with an image until `encoder.resume`."""
    scheduler = Scheduler({modality: BatchPolicy(8) for modality in ("image", "text")})
    batcher = Batcher(encoder, scheduler, observer, lanes=1)
    batcher.start()
    encoder.hold()
    submit(batcher, encoder, b"plug")
    await encoder.begun()
    yield batcher
    encoder.resume()
    assert await batcher.stop(_TIMEOUT_SECONDS)


def _sample(metrics: Metrics, name: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"modality": "image"})


class Room:
    """Notes what is freed."""

    def __init__(self) -> None:
        self.freed: list[tuple[int, int]] = []  # items and bytes

    def release(self, items: int, size_bytes: int) -> None:
        self.freed.append((items, size_bytes))


async def test_an_item_frees_its_own_room_when_the_first_of_its_equals_has_left(batcher, encoder):
    """Texts of the same words may differ in bytes."""
    tokens = encoder.tokenize("same words", truncate=False).token_ids
    rooms = [Room(), Room()]
    answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    first, _ = (
        batcher.submit("text", PreparedItems([tokens], [size], [b"same"]), answer.set_result, room=room)
        for size, room in zip([30, 10], rooms, strict=True)
    )

    batcher.withdraw(first)
    encoder.resume()
    await answer

    assert [room.freed for room in rooms] == [[], [(1, 10)]]


async def test_equal_items_run_once(batcher, encoder, metrics):
    """The items may come from two callers or from one call."""
    one = submit(batcher, encoder, b"same", b"other", b"same")
    another = submit(batcher, encoder, b"same")
    queued = _sample(metrics, "alignserve_queue_entries")

    encoder.resume()
    results = await asyncio.gather(one, another)

    assert queued == 2
    assert encoder.batch_sizes == [1, 2]
    assert _sample(metrics, "alignserve_embedding_cache_coalesced_total") == 2
    same, other = encoder.embedding_of(b"same"), encoder.embedding_of(b"other")
    np.testing.assert_array_equal(results[0].embeddings, [same, other, same])
    np.testing.assert_array_equal(results[1].embeddings, [same])


async def test_an_item_joins_a_running_entry(batcher, encoder):
    """A late item gets the result of a forward that has started; its room is freed at once."""
    controller = AdmissionController("image", QueueLimits(10, 10))
    await settle()

    late = submit(batcher, encoder, b"plug", room=controller.reserve(1, 4))
    controller.reserve(1, 10)  # succeeds, since the room is free again
    encoder.resume()

    assert isinstance(await late, Embedded)
    assert encoder.batch_sizes == [1]


async def test_cancelling_one_item_does_not_cancel_the_others(batcher, encoder):
    """An entry stays until its last item is cancelled, whichever item was first."""
    first, second, third = (submit(batcher, encoder, b"same") for _ in range(3))

    first.cancel()
    third.cancel()
    await settle()
    encoder.resume()

    assert isinstance(await second, Embedded)
    assert encoder.batch_sizes == [1, 1]


async def test_cancelling_the_last_item_removes_the_entry(batcher, encoder, metrics):
    """Nothing is left to run, and a later item queues a new entry."""
    gone = [submit(batcher, encoder, b"same") for _ in range(2)]

    for future in gone:
        future.cancel()
    await settle()
    queued = _sample(metrics, "alignserve_queue_entries")
    later = submit(batcher, encoder, b"same")
    encoder.resume()

    assert queued == 0
    assert isinstance(await later, Embedded)
    assert encoder.seen.count(encoder.key(b"same")) == 1


async def test_a_deadline_expires_only_its_own_item(batcher, encoder):
    """A caller with more time is not bound by the deadline of another caller of the entry."""
    now = asyncio.get_running_loop().time()
    patient = submit(batcher, encoder, b"same")
    hasty = submit(batcher, encoder, b"same", deadline=now)

    with pytest.raises(ExpiredInQueue):
        await hasty
    encoder.resume()

    assert isinstance(await patient, Embedded)


async def test_a_failure_reaches_all_callers_and_is_not_kept(batcher, encoder):
    """All items of the entry fail; a later equal item is tried again."""
    encoder.failing = {encoder.key(b"same")}
    sharing = [submit(batcher, encoder, b"same") for _ in range(2)]
    encoder.resume()

    answers = await asyncio.gather(*sharing, return_exceptions=True)
    encoder.failing.clear()
    again = submit(batcher, encoder, b"same")

    assert [type(answer) for answer in answers] == [InferenceFailed, InferenceFailed]
    assert isinstance(await again, Embedded)


async def test_images_and_texts_with_one_key_are_not_equal(batcher, encoder):
    """A key identifies content only within one modality."""
    of_image = submit(batcher, encoder, b"word")
    of_text = submit(batcher, encoder, "word")

    encoder.resume()

    np.testing.assert_array_equal((await of_image).embeddings, [encoder.embedding_of(b"word")])
    np.testing.assert_array_equal((await of_text).embeddings, [encoder.embedding_of("word")])


async def test_an_interactive_item_advances_an_equal_bulk_item(batcher, encoder):
    """A bulk entry that an interactive call also wants runs with the interactive entries."""
    bulk, interactive = Flow("b", Priority.BULK), Flow("i", Priority.INTERACTIVE)
    first = submit(batcher, encoder, *(b"%d" % i for i in range(4)), flow=bulk)
    wanted = submit(batcher, encoder, b"3", flow=interactive)

    encoder.resume()
    await asyncio.gather(first, wanted)

    assert encoder.seen[1] == encoder.key(b"3")
    assert len(encoder.seen) == 5


FLOOD, SMALL = (Flow(caller, Priority.INTERACTIVE) for caller in ("flood", "small"))


def _flood(batcher: Batcher, encoder: WatchedEncoder, flow: Flow) -> asyncio.Future[Embedded]:
    """Queues a request of forty images, which make five batches."""
    return submit(batcher, encoder, *(b"%d" % i for i in range(40)), flow=flow)


@pytest.mark.parametrize("flow", [FLOOD, Flow("flood", Priority.BULK)])
async def test_an_item_last_in_another_callers_line_runs_at_its_own_turn(batcher, encoder, flow):
    """A caller that shares an entry with a backlog does not wait for the backlog."""
    flood = _flood(batcher, encoder, flow)
    wanted = submit(batcher, encoder, b"39", flow=SMALL)

    encoder.resume()
    await asyncio.gather(wanted, flood)

    assert encoder.key(b"39") in encoder.batches[1].keys
    assert len(encoder.seen) == 41


async def test_an_entry_falls_back_in_line_when_its_other_caller_cancels(batcher, encoder):
    """Only callers that still want an entry give it their turns."""
    flood = _flood(batcher, encoder, FLOOD)
    left = submit(batcher, encoder, b"39", flow=SMALL)

    left.cancel()
    await settle()
    encoder.resume()
    await flood

    assert encoder.seen[-1] == encoder.key(b"39")


async def test_an_entry_stays_in_line_while_one_of_the_callers_items_waits(batcher, encoder):
    """Equal items of one caller share a place in its line, which is freed with the last of them."""
    flood = _flood(batcher, encoder, FLOOD)
    left, stays = submit_each(batcher, encoder, b"39", b"39", flow=SMALL)

    left.cancel()
    await settle()
    encoder.resume()
    await asyncio.gather(stays, flood)

    assert encoder.key(b"39") in encoder.batches[1].keys


async def test_an_entry_runs_for_another_caller_after_its_first_caller_cancels(batcher, encoder):
    """Cancelling a backlog does not affect other callers that want a part of it."""
    flood = _flood(batcher, encoder, FLOOD)
    wanted = submit(batcher, encoder, b"39", flow=SMALL)

    flood.cancel()
    await settle()
    encoder.resume()

    assert isinstance(await wanted, Embedded)
    assert encoder.seen == [encoder.key(b"plug"), encoder.key(b"39")]


async def test_each_caller_of_an_entry_gets_its_own_error(batcher, encoder):
    """A shared error would hold the frames of all callers and everything that those frames hold."""
    encoder.failing = {encoder.key(b"same")}
    sharing = [submit(batcher, encoder, b"same") for _ in range(2)]
    encoder.resume()

    one, other = await asyncio.gather(*sharing, return_exceptions=True)

    assert one is not other
    assert vars(one) == vars(other)
