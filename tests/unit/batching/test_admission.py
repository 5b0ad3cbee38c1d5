"""Who may come in, who waits, and who is refused."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress

import pytest
from alignserve_server.batching.admission import Place, Room
from alignserve_server.batching.fair_queue import Flow, Priority
from alignserve_server.errors import QueueFull, WouldMissDeadline

from tests.unit.fakes import FakeClock, settle

MAX_ITEMS, MAX_BYTES = 8, 800
OPEN_ITEMS, OPEN_BYTES = 6, 600  # three quarters: as much as one class may fill beside the other
OWN_ITEMS, OWN_BYTES = 2, 200  # a quarter: what the other class cannot fill

_numbers = itertools.count()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def room(clock: FakeClock) -> Room:
    return Room("image", max_items=MAX_ITEMS, max_bytes=MAX_BYTES, clock=clock)


def _fits(room: Room, items: int, size_bytes: int = 0) -> bool:
    """Says whether a caller who has nothing there comes in."""
    try:
        room.reserve(items, size_bytes, Flow(f"caller {next(_numbers)}", Priority.INTERACTIVE))
    except QueueFull:
        return False
    return True


async def _wait(room: Room, items: int, size_bytes: int = 0) -> asyncio.Task[Place]:
    """Starts to wait for room; the task is done once there was enough."""
    task = asyncio.create_task(room.wait(items, size_bytes))
    await settle()
    return task


@pytest.mark.parametrize(
    ("items", "size_bytes", "fits"),
    [(0, 0, True), (1, 1, True), (5, 599, True), (6, 1, False), (1, 600, False)],
    ids=["nothing", "one", "exactly full", "an item over", "a byte over"],
)
def test_calls_fill_three_quarters(room: Room, items: int, size_bytes: int, fits: bool) -> None:
    """Items and bytes are bounded each on their own, and the bound is inclusive."""
    room.reserve(1, 1)

    assert _fits(room, items, size_bytes) is fits


@pytest.mark.parametrize(
    ("items", "size_bytes", "enters"),
    [(5, 0, True), (6, 0, False), (1, 599, True), (1, 600, False)],
    ids=["exactly full", "an item over", "bytes exactly full", "a byte over"],
)
async def test_those_who_wait_fill_three_quarters(
    room: Room, items: int, size_bytes: int, enters: bool
) -> None:
    """The same bounds hold for both classes of callers."""
    (await _wait(room, 1, 1)).result()

    task = await _wait(room, items, size_bytes)

    assert task.done() is enters


async def test_those_who_wait_do_not_starve_beside_calls(room: Room) -> None:
    """As many calls as are admitted leave a quarter of the room to streams and label prompts."""
    while _fits(room, 1, 100):
        pass

    tasks = [await _wait(room, 1, 100) for _ in range(OWN_ITEMS + 1)]

    assert [task.done() for task in tasks] == [True] * OWN_ITEMS + [False]


async def test_calls_do_not_starve_beside_those_who_wait(room: Room) -> None:
    """As many streams as wait leave a quarter of the room to calls."""
    tasks = [await _wait(room, 1, 100) for _ in range(MAX_ITEMS)]

    fits = [_fits(room, 1, 100) for _ in range(OWN_ITEMS + 1)]

    assert sum(task.done() for task in tasks) == OPEN_ITEMS
    assert fits == [True] * OWN_ITEMS + [False]


async def test_a_class_that_fills_more_than_its_share_waits_for_the_rest(room: Room) -> None:
    """Its own share is for what it holds in all, not for each call."""
    room.reserve(4, 0)
    await _wait(room, OWN_ITEMS)

    more = await _wait(room, 1)

    assert not more.done()


async def test_many_small_items_do_not_spoil_the_share_of_bytes(room: Room) -> None:
    """A class whose items are many, and whose bytes are few, still has its share of bytes."""
    room.reserve(1, OPEN_BYTES)
    await _wait(room, OWN_ITEMS + 1, 10)

    task = await _wait(room, 1, 10)

    assert task.done()


@pytest.mark.parametrize(("items", "size_bytes"), [(1000, 1), (1, 1_000_000)])
def test_whatever_is_too_large_for_the_room_enters_alone(room: Room, items: int, size_bytes: int) -> None:
    """An empty room takes any call, so that none is refused for ever; then it is full."""
    room.reserve(items, size_bytes)

    assert not _fits(room, 1, 1)


async def test_who_is_too_large_waits_for_an_empty_room(room: Room) -> None:
    """A call above the limits enters alone."""
    place = room.reserve(1, 1)
    task = await _wait(room, 100, 100)
    waits_before = not task.done()

    place.leave()
    await settle()

    assert waits_before
    assert task.done()


def test_an_item_that_a_lane_takes_makes_room(room: Room) -> None:
    """One at a time, with its own bytes, while the call goes on."""
    place = room.reserve(OPEN_ITEMS, OPEN_BYTES)

    place.give_back(50)

    assert not _fits(room, 2, 50)
    assert not _fits(room, 1, 51)
    assert _fits(room, 1, 50)


def test_a_call_that_ends_makes_room_for_what_it_has_left(room: Room) -> None:
    """What a lane has taken is not given back twice."""
    with room.reserve(OPEN_ITEMS, OPEN_BYTES) as place:
        place.give_back(100)

    assert _fits(room, 1, OPEN_BYTES)
    assert _fits(room, OPEN_ITEMS - 1)
    assert not _fits(room, 1)


def test_an_item_that_is_taken_after_its_call_has_ended_makes_no_room(room: Room) -> None:
    """The lane's word comes by the event loop, and the call may be over by then."""
    first = room.reserve(OPEN_ITEMS, OPEN_BYTES)
    first.leave()
    room.reserve(OPEN_ITEMS, OPEN_BYTES)

    first.give_back(100)

    assert not _fits(room, 1, 100)


def test_a_refusal_says_what_waits(room: Room) -> None:
    """The message has the values and the limits."""
    room.reserve(5, 70)

    with pytest.raises(QueueFull, match=r"5 image items \(70 bytes\) wait, limit 8 \(800 bytes\)"):
        room.reserve(2, 20)


def test_a_refusal_says_when_to_come_back(room: Room, clock: FakeClock) -> None:
    """All that waits has to have its turn, at the pace at which others had theirs."""
    places = [room.reserve(1, 0) for _ in range(OPEN_ITEMS)]
    waiting = []
    for place in places:
        clock.advance(0.5)
        place.give_back(0)
        waiting.append(room.reserve(1, 0))

    with pytest.raises(QueueFull) as refused:
        room.reserve(1, 0)

    assert refused.value.retry_delay_seconds == pytest.approx(len(waiting) * 0.5, rel=0.1)


@pytest.mark.parametrize(("seconds", "delay"), [(0.0, 0.02), (3600.0, 30.0)])
def test_the_delay_is_neither_nothing_nor_for_ever(
    room: Room, clock: FakeClock, seconds: float, delay: float
) -> None:
    """Whatever was measured, callers come back."""
    room.reserve(OPEN_ITEMS, 0)
    clock.advance(seconds)

    with pytest.raises(QueueFull) as refused:
        room.reserve(1, 0)

    assert refused.value.retry_delay_seconds == delay


def test_a_refused_call_takes_no_room(room: Room) -> None:
    """What did not fit leaves the place for what does."""
    room.reserve(5, 5)
    is_refused = not _fits(room, 4, 4)

    assert is_refused
    assert _fits(room, 1, 1)


async def test_a_room_is_crowded_when_the_next_would_wait(room: Room) -> None:
    """Calls whose labels would stand in line are refused, those whose labels find room are not."""
    room.reserve(OPEN_ITEMS, 0)
    room.check_not_crowded()
    await _wait(room, OWN_ITEMS)

    with pytest.raises(QueueFull):
        room.check_not_crowded()


async def test_a_line_makes_a_room_crowded(room: Room) -> None:
    """Even if a small one would fit, it would stand behind a large one."""
    room.reserve(1, 0)
    await _wait(room, MAX_ITEMS)

    with pytest.raises(QueueFull):
        room.check_not_crowded()


async def test_room_goes_to_those_who_wait_in_order(room: Room) -> None:
    """As many as fit come in, the first first; a small one behind a large one does not overtake it."""
    place = (await _wait(room, OPEN_ITEMS)).result()
    tasks = [await _wait(room, items) for items in (1, 2, 4, 1)]

    for _ in range(3):
        place.give_back(0)
    await settle()

    assert [task.done() for task in tasks] == [True, True, False, False]


async def test_a_newcomer_does_not_overtake(room: Room) -> None:
    """While somebody waits, who comes later waits behind, even if there is room for it."""
    await _wait(room, OPEN_ITEMS - 1)
    await _wait(room, 2)

    newcomer = await _wait(room, 1)

    assert not newcomer.done()


async def test_who_leaves_makes_way_for_those_behind(room: Room) -> None:
    """The call at the head took no room; a smaller one behind it comes in at once."""
    await _wait(room, OPEN_ITEMS - 1)
    large, small = await _wait(room, 2), await _wait(room, 1)

    large.cancel()
    await settle()

    assert large.cancelled()
    assert small.done()


async def test_room_given_at_the_moment_of_leaving_goes_to_the_next(room: Room) -> None:
    """A call that is cancelled after its turn came, but before it ran, gives the room back."""
    place = (await _wait(room, OPEN_ITEMS)).result()
    leaving, next_one = await _wait(room, 4), await _wait(room, 4)

    place.leave()
    leaving.cancel()
    await settle()

    assert leaving.cancelled()
    assert next_one.done()


async def test_room_is_not_given_to_who_is_leaving(room: Room) -> None:
    """A call that is cancelled, but has not run since, is passed over."""
    place = (await _wait(room, OPEN_ITEMS)).result()
    leaving, next_one = await _wait(room, 4), await _wait(room, 4)

    leaving.cancel()
    place.leave()
    await settle()

    assert next_one.done()


async def test_after_everybody_left_the_room_is_empty(room: Room) -> None:
    """Waiting, leaving and entering balance: nothing leaks."""
    place = room.reserve(OPEN_ITEMS, OPEN_BYTES)
    gone, came = await _wait(room, 3, 20), await _wait(room, 2, 30)

    gone.cancel()
    place.leave()
    (await came).leave()

    assert _fits(room, 1000, 1_000_000)


def _flow(caller: str, priority: Priority = Priority.INTERACTIVE) -> Flow:
    return Flow(caller, priority)


class TestFairShares:
    """One caller cannot take all the room."""

    def test_a_flood_leaves_room_for_newcomers(self) -> None:
        """A caller who takes all it can leaves an eighth of what its class may fill."""
        room = Room("text", max_items=1024, max_bytes=1 << 20)

        admitted = 0
        for _ in range(1024):
            with suppress(QueueFull):
                room.reserve(1, 1, _flow("flood"))
                admitted += 1

        assert admitted == 1024 * 3 // 4 * 7 // 8

    def test_two_floods_share_the_room(self) -> None:
        """As places fall free, who holds more is refused until both hold the same."""
        room = Room("text", max_items=1024, max_bytes=1 << 20)
        held: dict[str, list[Place]] = {"early": [], "late": []}
        for caller in [*["early"] * 1000, *["early", "late"] * 2000]:
            if sum(map(len, held.values())) > 600 and held["early"]:
                held["early" if len(held["early"]) > len(held["late"]) else "late"].pop(0).leave()
            with suppress(QueueFull):
                held[caller].append(room.reserve(1, 1, _flow(caller)))

        assert len(held["late"]) == pytest.approx(len(held["early"]), rel=0.1)

    async def test_those_who_wait_take_turns(self, room: Room) -> None:
        """A caller with one stream is not behind all of another's hundred."""
        place = (await _wait(room, OPEN_ITEMS)).result()
        flood = [asyncio.create_task(room.wait(1, 0, _flow("flood"))) for _ in range(100)]
        await settle()
        small = asyncio.create_task(room.wait(1, 0, _flow("small")))
        await settle()

        for _ in range(2):
            place.give_back(0)
        await settle()

        assert small.done()
        assert sum(task.done() for task in flood) == 1
        for task in flood:
            task.cancel()

    async def test_anothers_line_makes_a_room_no_more_crowded(self, room: Room) -> None:
        """Who has nothing there is next, however many of another's stand in line."""
        room.reserve(OPEN_ITEMS, 0)
        await _wait(room, OWN_ITEMS)
        await _wait(room, 1)

        room.check_not_crowded(_flow("newcomer"))


class TestDeadlines:
    """A call that cannot be answered in time is refused at once."""

    @pytest.fixture
    def busy(self, clock: FakeClock) -> Room:
        """A room in which a hundred wait, of whom one gets its turn every 10 ms and is answered at once."""
        room = Room("image", max_items=1000, max_bytes=1000, clock=clock)
        for _ in range(100):
            room.reserve(1, 1)
        for _ in range(500):
            place = room.reserve(1, 1)
            clock.advance(0.01)
            place.give_back(1)
            place.leave()
        return room

    def test_a_deadline_that_is_too_close_is_refused(self, busy: Room) -> None:
        """The hundred and first in line at 100 a second is answered after about a second."""
        busy.reserve(1, 1, seconds_left=1.1).leave(served=False)

        with pytest.raises(WouldMissDeadline, match=r"about 1\.0") as refused:
            busy.reserve(1, 1, seconds_left=0.9)

        assert refused.value.retry_delay_seconds == pytest.approx(0.1, abs=0.02)

    def test_the_time_in_the_model_counts(self, busy: Room, clock: FakeClock) -> None:
        """An answer comes after the turn, by as long as the device has been taking."""
        places = [busy.reserve(1, 1) for _ in range(50)]
        for place in places:
            place.give_back(1)
        clock.advance(0.5)
        for place in places:
            place.leave()

        with pytest.raises(WouldMissDeadline, match="about 1"):
            busy.reserve(1, 1, seconds_left=1.4)

    def test_another_callers_backlog_is_not_in_the_way(self, busy: Room) -> None:
        """Callers take turns, so a newcomer has one item of the other before its own."""
        place = busy.reserve(1, 1, _flow("newcomer"), seconds_left=0.1)

        assert place is not None

    def test_bulk_work_waits_for_all(self, busy: Room) -> None:
        """A newcomer with a bulk call is behind the others' interactive ones."""
        with pytest.raises(WouldMissDeadline):
            busy.reserve(1, 1, _flow("newcomer", Priority.BULK), seconds_left=0.1)

    def test_an_empty_room_tries(self, room: Room) -> None:
        """Where nothing is in the way, nothing speaks against trying."""
        place = room.reserve(1, 1, seconds_left=0.001)

        assert place is not None

    def test_who_gives_up_does_not_make_the_rest_look_faster(self, busy: Room) -> None:
        """Only turns that came count."""
        for _ in range(50):
            busy.reserve(1, 1).leave(served=False)

        with pytest.raises(WouldMissDeadline):
            busy.reserve(1, 1, seconds_left=0.9)
