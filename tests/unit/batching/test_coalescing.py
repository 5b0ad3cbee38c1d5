"""Equal items that wait at the same time share one place in the queue, and one result."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from alignserve_server.batching.admission import AdmissionController, QueueLimits
from alignserve_server.batching.batcher import Batcher, Item
from alignserve_server.batching.fair_queue import Flow, Priority
from alignserve_server.batching.queue import Embedded
from alignserve_server.batching.scheduler import BatchPolicy, Scheduler
from alignserve_server.errors import ExpiredInQueue, InferenceFailed
from alignserve_server.observability.batch_observer import MetricsObserver
from alignserve_server.observability.metrics import Metrics

from tests.unit.fakes import WatchedEncoder, settle

_PATIENCE_SECONDS = 30.0  # only a failing test waits so long


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
    batcher.submit("image", [_item(encoder, b"plug")])
    await encoder.begun()
    yield batcher
    encoder.resume()
    assert await batcher.stop(_PATIENCE_SECONDS)


def _item(encoder: WatchedEncoder, content: bytes) -> Item:
    return Item(encoder.preprocess_image(content), 1, len(content), content)


def _sample(metrics: Metrics, name: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"modality": "image"})


async def test_equal_items_run_once(batcher, encoder, metrics):
    """Of two callers, or twice in one call."""
    one = batcher.submit(
        "image", [_item(encoder, b"same"), _item(encoder, b"other"), _item(encoder, b"same")]
    )
    (another,) = batcher.submit("image", [_item(encoder, b"same")])
    queued = _sample(metrics, "alignserve_queue_entries")

    encoder.resume()
    results = [await future for future in (*one, another)]

    assert queued == 2
    assert encoder.batch_sizes == [1, 2]
    assert _sample(metrics, "alignserve_embedding_cache_coalesced_total") == 2
    for result, content in zip(results, (b"same", b"other", b"same", b"same"), strict=True):
        np.testing.assert_array_equal(result.embedding, encoder.embedding_of(content))


async def test_an_item_joins_one_that_a_lane_has(batcher, encoder):
    """Even a forward that has begun will have its result; its room is free at once."""
    controller = AdmissionController("image", QueueLimits(10, 10))
    item = _item(encoder, b"plug")._replace(slot=controller.reserve(1, 10).slot(10))

    (late,) = batcher.submit("image", [item])
    controller.reserve(1, 10)  # there is room again
    encoder.resume()

    assert isinstance(await late, Embedded)
    assert encoder.batch_sizes == [1]


async def test_who_leaves_takes_nobody_along(batcher, encoder):
    """Neither the first who came, nor those who joined; the entry stays until the last has left."""
    first, second, third = (batcher.submit("image", [_item(encoder, b"same")])[0] for _ in range(3))

    first.cancel()
    third.cancel()
    await settle()
    encoder.resume()

    assert isinstance(await second, Embedded)
    assert encoder.batch_sizes == [1, 1]


async def test_the_last_to_leave_takes_the_entry_out(batcher, encoder, metrics):
    """Then nothing is left to run, and who comes now starts anew."""
    gone = [batcher.submit("image", [_item(encoder, b"same")])[0] for _ in range(2)]

    for future in gone:
        future.cancel()
    await settle()
    queued = _sample(metrics, "alignserve_queue_entries")
    (anew,) = batcher.submit("image", [_item(encoder, b"same")])
    encoder.resume()

    assert queued == 0
    assert isinstance(await anew, Embedded)
    assert encoder.seen.count(encoder.key(b"same")) == 1


async def test_one_deadline_expires_alone(batcher, encoder):
    """A caller with more time is not bound by that of the one it shares with."""
    now = asyncio.get_running_loop().time()
    (patient,) = batcher.submit("image", [_item(encoder, b"same")])
    (hasty,) = batcher.submit("image", [_item(encoder, b"same")], deadline=now)

    with pytest.raises(ExpiredInQueue):
        await hasty
    encoder.resume()

    assert isinstance(await patient, Embedded)


async def test_a_failure_is_everybodys_and_is_not_kept(batcher, encoder):
    """All who share the entry get the error; the next one is tried again."""
    encoder.failing = {encoder.key(b"same")}
    sharing = [batcher.submit("image", [_item(encoder, b"same")])[0] for _ in range(2)]
    encoder.resume()

    answers = await asyncio.gather(*sharing, return_exceptions=True)
    encoder.failing.clear()
    (again,) = batcher.submit("image", [_item(encoder, b"same")])

    assert [type(answer) for answer in answers] == [InferenceFailed, InferenceFailed]
    assert isinstance(await again, Embedded)


async def test_images_and_texts_with_one_key_are_not_equal(batcher, encoder):
    """A key names a content of one modality."""
    text = encoder.tokenize("word", truncate=False)
    (of_image,) = batcher.submit("image", [_item(encoder, b"key")])
    (of_text,) = batcher.submit("text", [Item(text, len(text.input_ids), 1, b"key")])

    encoder.resume()

    np.testing.assert_array_equal((await of_image).embedding, encoder.embedding_of(b"key"))
    np.testing.assert_array_equal((await of_text).embedding, encoder.embedding_of("word"))


async def test_an_item_that_cannot_wait_takes_its_equal_along(batcher, encoder):
    """A bulk entry that an interactive call wants too goes with the interactive ones."""
    bulk, interactive = Flow("b", Priority.BULK), Flow("i", Priority.INTERACTIVE)
    first = batcher.submit("image", [_item(encoder, b"%d" % i) for i in range(4)], flow=bulk)
    wanted = batcher.submit("image", [_item(encoder, b"3")], flow=interactive)

    encoder.resume()
    await asyncio.gather(*first, *wanted)

    assert encoder.seen[1] == encoder.key(b"3")
    assert len(encoder.seen) == 5


FLOOD, SMALL = (Flow(caller, Priority.INTERACTIVE) for caller in ("flood", "small"))


def _flood(batcher: Batcher, encoder: WatchedEncoder, flow: Flow) -> list[asyncio.Future[Embedded]]:
    """Queues forty images, five batches, of one caller."""
    return batcher.submit("image", [_item(encoder, b"%d" % i) for i in range(40)], flow=flow)


@pytest.mark.parametrize("flow", [FLOOD, Flow("flood", Priority.BULK)])
async def test_an_item_that_is_last_in_anothers_line_runs_at_its_own_turn(batcher, encoder, flow):
    """Sharing work with a backlog does not mean to wait for it."""
    flood = _flood(batcher, encoder, flow)
    (wanted,) = batcher.submit("image", [_item(encoder, b"39")], flow=SMALL)

    encoder.resume()
    await asyncio.gather(wanted, *flood)

    assert encoder.key(b"39") in encoder.batches[1].keys
    assert len(encoder.seen) == 41


async def test_an_item_whose_other_caller_has_left_waits_in_line_again(batcher, encoder):
    """Its turn is only that of those who still want it."""
    flood = _flood(batcher, encoder, FLOOD)
    (left,) = batcher.submit("image", [_item(encoder, b"39")], flow=SMALL)

    left.cancel()
    await settle()
    encoder.resume()
    await asyncio.gather(*flood)

    assert encoder.seen[-1] == encoder.key(b"39")


async def test_an_item_stays_in_line_while_one_of_its_caller_waits(batcher, encoder):
    """Two items of one caller are one place in its line, which the last of them takes along."""
    flood = _flood(batcher, encoder, FLOOD)
    left, stays = batcher.submit("image", [_item(encoder, b"39")] * 2, flow=SMALL)

    left.cancel()
    await settle()
    encoder.resume()
    await asyncio.gather(stays, *flood)

    assert encoder.key(b"39") in encoder.batches[1].keys


async def test_an_item_runs_at_the_others_turns_once_its_first_caller_has_left(batcher, encoder):
    """A backlog that is given up takes nothing away from those who want a part of it."""
    flood = _flood(batcher, encoder, FLOOD)
    (wanted,) = batcher.submit("image", [_item(encoder, b"39")], flow=SMALL)

    for future in flood:
        future.cancel()
    await settle()
    encoder.resume()

    assert isinstance(await wanted, Embedded)
    assert encoder.seen == [encoder.key(b"plug"), encoder.key(b"39")]


async def test_each_who_shares_an_entry_has_an_error_of_its_own(batcher, encoder):
    """One for all would gather the frames of all, and what these hold."""
    encoder.failing = {encoder.key(b"same")}
    sharing = [batcher.submit("image", [_item(encoder, b"same")])[0] for _ in range(2)]
    encoder.resume()

    one, other = await asyncio.gather(*sharing, return_exceptions=True)

    assert one is not other
    assert vars(one) == vars(other)
