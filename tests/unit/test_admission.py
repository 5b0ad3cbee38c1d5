"""Who may come in, who waits, and who is refused."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from alignserve_server.batching.admission import Room
from alignserve_server.errors import QueueFull

from tests.unit.fakes import settle

MAX_ITEMS, MAX_BYTES = 8, 800
WAITING_ITEMS, WAITING_BYTES = 6, 600  # three quarters: as much as those who wait may fill


@dataclass
class Queued:
    """What the queue says of itself."""

    items: int = 0
    size_bytes: int = 0

    def __call__(self) -> tuple[int, int]:
        return self.items, self.size_bytes


@pytest.fixture
def queued() -> Queued:
    return Queued()


@pytest.fixture
def room(queued: Queued) -> Room:
    return Room("image", max_items=MAX_ITEMS, max_bytes=MAX_BYTES, queued=queued, retry_delay=lambda: 2.5)


def _fits(room: Room, items: int, size_bytes: int) -> bool:
    try:
        room.reserve(items, size_bytes)
    except QueueFull:
        return False
    return True


async def _wait(room: Room, items: int, size_bytes: int = 0) -> asyncio.Task[None]:
    """Starts to wait for room; the task is done once there was enough."""
    task = asyncio.create_task(room.wait(items, size_bytes))
    await settle()
    return task


@pytest.mark.parametrize(
    ("items", "size_bytes", "fits"),
    [(0, 0, True), (1, 1, True), (7, 799, True), (8, 1, False), (1, 800, False)],
    ids=["nothing", "one", "exactly full", "an item over", "a byte over"],
)
def test_reserves_up_to_both_limits(room: Room, items: int, size_bytes: int, fits: bool) -> None:
    """Items and bytes are bounded each on their own, and the bound is inclusive."""
    room.reserve(1, 1)

    assert _fits(room, items, size_bytes) is fits


@pytest.mark.parametrize(("items", "size_bytes"), [(1000, 1), (1, 1_000_000)])
def test_whatever_is_too_large_for_the_room_enters_alone(room: Room, items: int, size_bytes: int) -> None:
    """An empty room takes any call, so that none is refused for ever; then it is full."""
    room.reserve(items, size_bytes)

    assert not _fits(room, 1, 1)


def test_what_waits_in_the_queue_takes_room(room: Room, queued: Queued) -> None:
    """Reserved and queued items count together."""
    queued.items, queued.size_bytes = 5, 5
    room.reserve(2, 2)

    assert not _fits(room, 2, 2)
    assert _fits(room, 1, 1)


def test_released_room_can_be_taken_again(room: Room) -> None:
    """Items and bytes that are given back are free."""
    room.reserve(MAX_ITEMS, MAX_BYTES)

    room.release(3, 300)

    assert _fits(room, 3, 300)


def test_a_refusal_says_what_waits_and_when_to_come_back(room: Room, queued: Queued) -> None:
    """The message has the values and the limits; the delay is the measured one."""
    queued.items, queued.size_bytes = 6, 60
    room.reserve(1, 10)

    with pytest.raises(QueueFull, match=r"7 image items \(70 bytes\) wait, limit 8 \(800 bytes\)") as refused:
        room.reserve(2, 20)

    assert refused.value.retry_delay_seconds == 2.5


def test_a_refused_call_takes_no_room(room: Room) -> None:
    """What did not fit leaves the place for what does."""
    room.reserve(5, 5)
    assert not _fits(room, 4, 4)

    assert _fits(room, 3, 3)


@pytest.mark.parametrize(
    ("items", "size_bytes", "enters"),
    [(5, 0, True), (6, 0, False), (1, 599, True), (1, 600, False)],
    ids=["fills the share", "an item over", "bytes fill the share", "a byte over"],
)
async def test_those_who_wait_get_a_share_of_the_room(
    room: Room, items: int, size_bytes: int, enters: bool
) -> None:
    """A quarter of items and of bytes stays for calls that cannot wait."""
    room.reserve(1, 1)

    task = await _wait(room, items, size_bytes)

    assert task.done() is enters


async def test_calls_that_cannot_wait_pass_those_who_do(room: Room) -> None:
    """Streams that wait do not make unary calls starve."""
    room.reserve(WAITING_ITEMS, 0)
    await _wait(room, 1)

    assert room.has_waiters
    assert _fits(room, MAX_ITEMS - WAITING_ITEMS, 0)


async def test_who_is_too_large_waits_for_an_empty_room(room: Room) -> None:
    """A call above the share enters alone."""
    room.reserve(1, 1)
    task = await _wait(room, 100, 100)
    assert not task.done()

    room.release(1, 1)
    await settle()

    assert task.done()


async def test_room_goes_to_those_who_wait_in_order(room: Room) -> None:
    """As many as fit come in, the first first; a small one behind a large one does not overtake it."""
    room.reserve(WAITING_ITEMS, 0)
    tasks = [await _wait(room, items) for items in (1, 2, 4, 1)]

    room.release(3, 0)
    await settle()

    assert [task.done() for task in tasks] == [True, True, False, False]


async def test_a_newcomer_does_not_overtake(room: Room) -> None:
    """While somebody waits, who comes later waits behind, even if there is room for it."""
    room.reserve(WAITING_ITEMS - 1, 0)
    await _wait(room, 2)

    newcomer = await _wait(room, 1)

    assert not newcomer.done()


async def test_a_queue_that_drains_lets_waiters_in_when_told(room: Room, queued: Queued) -> None:
    """The room looks at the queue again on `wake`."""
    queued.items = WAITING_ITEMS
    task = await _wait(room, 1)

    queued.items = 0
    room.wake()
    await settle()

    assert task.done()
    assert not room.has_waiters


async def test_who_leaves_makes_way_for_those_behind(room: Room) -> None:
    """The call at the head took no room; a smaller one behind it comes in at once."""
    room.reserve(WAITING_ITEMS - 1, 0)
    large, small = await _wait(room, 2), await _wait(room, 1)

    large.cancel()
    await settle()

    assert large.cancelled()
    assert small.done()


async def test_room_given_at_the_moment_of_leaving_goes_to_the_next(room: Room) -> None:
    """A call that is cancelled after its turn came, but before it ran, gives the room back."""
    room.reserve(WAITING_ITEMS, 0)
    leaving, next_one = await _wait(room, 3), await _wait(room, 3)

    room.release(3, 0)
    leaving.cancel()
    await settle()

    assert leaving.cancelled()
    assert next_one.done()


async def test_room_is_not_given_to_who_is_leaving(room: Room) -> None:
    """A call that is cancelled, but has not run since, is passed over."""
    room.reserve(WAITING_ITEMS, 0)
    leaving, next_one = await _wait(room, 3), await _wait(room, 3)

    leaving.cancel()
    room.release(3, 0)
    await settle()

    assert next_one.done()


async def test_after_everybody_left_the_room_is_empty(room: Room) -> None:
    """Waiting, leaving and entering balance: nothing leaks."""
    room.reserve(WAITING_ITEMS, WAITING_BYTES)
    gone, came = await _wait(room, 2, 20), await _wait(room, 3, 30)

    gone.cancel()
    room.release(WAITING_ITEMS, WAITING_BYTES)
    await came
    room.release(3, 30)

    room.reserve(1, 1)
    assert _fits(room, MAX_ITEMS - 1, MAX_BYTES - 1)
    assert not _fits(room, 1, 0)
