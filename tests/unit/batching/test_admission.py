"""Who may come in, who waits, and who is refused."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress

import pytest
from alignserve_server.batching.admission import AdmissionController, QueueLimits, Reservation
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
def controller(clock: FakeClock) -> AdmissionController:
    return AdmissionController("image", QueueLimits(MAX_ITEMS, MAX_BYTES), clock=clock)


def _fits(controller: AdmissionController, items: int, size_bytes: int = 0) -> bool:
    """Says whether a caller who has nothing there comes in."""
    try:
        controller.reserve(items, size_bytes, Flow(f"caller {next(_numbers)}", Priority.INTERACTIVE))
    except QueueFull:
        return False
    return True


async def _wait(
    controller: AdmissionController, items: int, size_bytes: int = 0
) -> asyncio.Task[Reservation]:
    """Starts to wait for room; the task is done once there was enough."""
    task = asyncio.create_task(controller.wait(items, size_bytes))
    await settle()
    return task


@pytest.mark.parametrize(
    ("items", "size_bytes", "fits"),
    [(0, 0, True), (1, 1, True), (5, 599, True), (6, 1, False), (1, 600, False)],
    ids=["nothing", "one", "exactly full", "an item over", "a byte over"],
)
def test_calls_fill_three_quarters(
    controller: AdmissionController, items: int, size_bytes: int, fits: bool
) -> None:
    """Items and bytes are bounded each on their own, and the bound is inclusive."""
    controller.reserve(1, 1)

    assert _fits(controller, items, size_bytes) is fits


@pytest.mark.parametrize(
    ("items", "size_bytes", "enters"),
    [(5, 0, True), (6, 0, False), (1, 599, True), (1, 600, False)],
    ids=["exactly full", "an item over", "bytes exactly full", "a byte over"],
)
async def test_those_who_wait_fill_three_quarters(
    controller: AdmissionController, items: int, size_bytes: int, enters: bool
) -> None:
    """The same bounds hold for both classes of callers."""
    (await _wait(controller, 1, 1)).result()

    task = await _wait(controller, items, size_bytes)

    assert task.done() is enters


async def test_those_who_wait_do_not_starve_beside_calls(controller: AdmissionController) -> None:
    """As many calls as are admitted leave a quarter of the room to streams and label prompts."""
    while _fits(controller, 1, 100):
        pass

    tasks = [await _wait(controller, 1, 100) for _ in range(OWN_ITEMS + 1)]

    assert [task.done() for task in tasks] == [True] * OWN_ITEMS + [False]


async def test_calls_do_not_starve_beside_those_who_wait(controller: AdmissionController) -> None:
    """As many streams as wait leave a quarter of the room to calls."""
    tasks = [await _wait(controller, 1, 100) for _ in range(MAX_ITEMS)]

    fits = [_fits(controller, 1, 100) for _ in range(OWN_ITEMS + 1)]

    assert sum(task.done() for task in tasks) == OPEN_ITEMS
    assert fits == [True] * OWN_ITEMS + [False]


async def test_a_class_that_fills_more_than_its_share_waits_for_the_rest(
    controller: AdmissionController,
) -> None:
    """Its own share is for what it holds in all, not for each call."""
    controller.reserve(4, 0)
    await _wait(controller, OWN_ITEMS)

    more = await _wait(controller, 1)

    assert not more.done()


async def test_many_small_items_do_not_spoil_the_share_of_bytes(controller: AdmissionController) -> None:
    """A class whose items are many, and whose bytes are few, still has its share of bytes."""
    controller.reserve(1, OPEN_BYTES)
    await _wait(controller, OWN_ITEMS + 1, 10)

    task = await _wait(controller, 1, 10)

    assert task.done()


@pytest.mark.parametrize(("items", "size_bytes"), [(1000, 1), (1, 1_000_000)])
def test_whatever_is_too_large_for_the_room_enters_alone(
    controller: AdmissionController, items: int, size_bytes: int
) -> None:
    """An empty room takes any call, so that none is refused for ever; then it is full."""
    controller.reserve(items, size_bytes)

    assert not _fits(controller, 1, 1)


async def test_who_is_too_large_waits_for_an_empty_room(controller: AdmissionController) -> None:
    """A call above the limits enters alone."""
    reservation = controller.reserve(1, 1)
    task = await _wait(controller, 100, 100)
    waits_before = not task.done()

    reservation.close()
    await settle()

    assert waits_before
    assert task.done()


def test_an_item_that_a_lane_takes_makes_room(controller: AdmissionController) -> None:
    """One at a time, with its own bytes, while the call goes on."""
    reservation = controller.reserve(OPEN_ITEMS, OPEN_BYTES)

    reservation.slot(50).release()

    assert not _fits(controller, 2, 50)
    assert not _fits(controller, 1, 51)
    assert _fits(controller, 1, 50)


def test_a_call_that_ends_makes_room_for_what_it_has_left(controller: AdmissionController) -> None:
    """What a lane has taken is not given back twice."""
    with controller.reserve(OPEN_ITEMS, OPEN_BYTES) as reservation:
        reservation.slot(100).release()

    assert _fits(controller, 1, OPEN_BYTES)
    assert _fits(controller, OPEN_ITEMS - 1)
    assert not _fits(controller, 1)


def test_an_item_that_is_taken_after_its_call_has_ended_makes_no_room(
    controller: AdmissionController,
) -> None:
    """The lane's word comes by the event loop, and the call may be over by then."""
    first = controller.reserve(OPEN_ITEMS, OPEN_BYTES)
    first.close()
    controller.reserve(OPEN_ITEMS, OPEN_BYTES)

    first.slot(100).release()

    assert not _fits(controller, 1, 100)


def test_a_refusal_says_what_waits(controller: AdmissionController) -> None:
    """The message has the values and the limits."""
    controller.reserve(5, 70)

    with pytest.raises(QueueFull, match=r"5 image items \(70 bytes\) wait, limit 8 \(800 bytes\)"):
        controller.reserve(2, 20)


def test_a_refusal_says_when_to_come_back(controller: AdmissionController, clock: FakeClock) -> None:
    """All that waits has to have its turn, at the pace at which others had theirs."""
    reservations = [controller.reserve(1, 0) for _ in range(OPEN_ITEMS)]
    waiting = []
    for reservation in reservations:
        clock.advance(0.5)
        reservation.slot(0).release()
        waiting.append(controller.reserve(1, 0))

    with pytest.raises(QueueFull) as refused:
        controller.reserve(1, 0)

    assert refused.value.retry_delay_seconds == pytest.approx(len(waiting) * 0.5, rel=0.1)


@pytest.mark.parametrize(("seconds", "delay"), [(0.0, 0.02), (3600.0, 30.0)])
def test_the_delay_is_neither_nothing_nor_for_ever(
    controller: AdmissionController, clock: FakeClock, seconds: float, delay: float
) -> None:
    """Whatever was measured, callers come back."""
    controller.reserve(OPEN_ITEMS, 0)
    clock.advance(seconds)

    with pytest.raises(QueueFull) as refused:
        controller.reserve(1, 0)

    assert refused.value.retry_delay_seconds == delay


def test_a_refused_call_takes_no_room(controller: AdmissionController) -> None:
    """What did not fit leaves the room for what does."""
    controller.reserve(5, 5)
    is_refused = not _fits(controller, 4, 4)

    assert is_refused
    assert _fits(controller, 1, 1)


async def test_a_room_is_crowded_when_the_next_would_wait(controller: AdmissionController) -> None:
    """Calls whose labels would stand in line are refused, those whose labels find room are not."""
    controller.reserve(OPEN_ITEMS, 0)
    controller.check_not_crowded()
    await _wait(controller, OWN_ITEMS)

    with pytest.raises(QueueFull):
        controller.check_not_crowded()


async def test_a_line_makes_a_room_crowded(controller: AdmissionController) -> None:
    """Even if a small one would fit, it would stand behind a large one."""
    controller.reserve(1, 0)
    await _wait(controller, MAX_ITEMS)

    with pytest.raises(QueueFull):
        controller.check_not_crowded()


async def test_room_goes_to_those_who_wait_in_order(controller: AdmissionController) -> None:
    """As many as fit come in, the first first; a small one behind a large one does not overtake it."""
    reservation = (await _wait(controller, OPEN_ITEMS)).result()
    tasks = [await _wait(controller, items) for items in (1, 2, 4, 1)]

    for _ in range(3):
        reservation.slot(0).release()
    await settle()

    assert [task.done() for task in tasks] == [True, True, False, False]


async def test_a_newcomer_does_not_overtake(controller: AdmissionController) -> None:
    """While somebody waits, who comes later waits behind, even if there is room for it."""
    await _wait(controller, OPEN_ITEMS - 1)
    await _wait(controller, 2)

    newcomer = await _wait(controller, 1)

    assert not newcomer.done()


async def test_who_leaves_makes_way_for_those_behind(controller: AdmissionController) -> None:
    """The call at the head took no room; a smaller one behind it comes in at once."""
    await _wait(controller, OPEN_ITEMS - 1)
    large, small = await _wait(controller, 2), await _wait(controller, 1)

    large.cancel()
    await settle()

    assert large.cancelled()
    assert small.done()


async def test_room_given_at_the_moment_of_leaving_goes_to_the_next(controller: AdmissionController) -> None:
    """A call that is cancelled after its turn came, but before it ran, gives the room back."""
    reservation = (await _wait(controller, OPEN_ITEMS)).result()
    leaving, next_one = await _wait(controller, 4), await _wait(controller, 4)

    reservation.close()
    leaving.cancel()
    await settle()

    assert leaving.cancelled()
    assert next_one.done()


async def test_room_is_not_given_to_who_is_leaving(controller: AdmissionController) -> None:
    """A call that is cancelled, but has not run since, is passed over."""
    reservation = (await _wait(controller, OPEN_ITEMS)).result()
    leaving, next_one = await _wait(controller, 4), await _wait(controller, 4)

    leaving.cancel()
    reservation.close()
    await settle()

    assert next_one.done()


async def test_after_everybody_left_the_room_is_empty(controller: AdmissionController) -> None:
    """Waiting, leaving and entering balance: nothing leaks."""
    reservation = controller.reserve(OPEN_ITEMS, OPEN_BYTES)
    gone, came = await _wait(controller, 3, 20), await _wait(controller, 2, 30)

    gone.cancel()
    reservation.close()
    (await came).close()

    assert _fits(controller, 1000, 1_000_000)


def _flow(caller: str, priority: Priority = Priority.INTERACTIVE) -> Flow:
    return Flow(caller, priority)


class TestFairShares:
    """One caller cannot take all the room."""

    def test_a_flood_leaves_room_for_newcomers(self) -> None:
        """A caller who takes all it can leaves an eighth of what its class may fill."""
        controller = AdmissionController("text", QueueLimits(1024, 1 << 20))

        admitted = 0
        for _ in range(1024):
            with suppress(QueueFull):
                controller.reserve(1, 1, _flow("flood"))
                admitted += 1

        assert admitted == 1024 * 3 // 4 * 7 // 8

    def test_two_floods_share_the_room(self) -> None:
        """As room is freed, who holds more is refused until both hold the same."""
        controller = AdmissionController("text", QueueLimits(1024, 1 << 20))
        held: dict[str, list[Reservation]] = {"early": [], "late": []}
        for caller in [*["early"] * 1000, *["early", "late"] * 2000]:
            if sum(map(len, held.values())) > 600 and held["early"]:
                held["early" if len(held["early"]) > len(held["late"]) else "late"].pop(0).close()
            with suppress(QueueFull):
                held[caller].append(controller.reserve(1, 1, _flow(caller)))

        assert len(held["late"]) == pytest.approx(len(held["early"]), rel=0.1)

    async def test_those_who_wait_take_turns(self, controller: AdmissionController) -> None:
        """A caller with one stream is not behind all of another's hundred."""
        reservation = (await _wait(controller, OPEN_ITEMS)).result()
        flood = [asyncio.create_task(controller.wait(1, 0, _flow("flood"))) for _ in range(100)]
        await settle()
        small = asyncio.create_task(controller.wait(1, 0, _flow("small")))
        await settle()

        for _ in range(2):
            reservation.slot(0).release()
        await settle()

        assert small.done()
        assert sum(task.done() for task in flood) == 1
        for task in flood:
            task.cancel()

    async def test_anothers_line_makes_a_room_no_more_crowded(self, controller: AdmissionController) -> None:
        """Who has nothing there is next, however many of another's stand in line."""
        controller.reserve(OPEN_ITEMS, 0)
        await _wait(controller, OWN_ITEMS)
        await _wait(controller, 1)

        controller.check_not_crowded(_flow("newcomer"))


class TestDeadlines:
    """A call that cannot be answered in time is refused at once."""

    @pytest.fixture
    def busy(self, clock: FakeClock) -> AdmissionController:
        """A room in which a hundred wait, of whom one gets its turn every 10 ms and is answered at once."""
        controller = AdmissionController("image", QueueLimits(1000, 1000), clock=clock)
        for _ in range(100):
            controller.reserve(1, 1)
        for _ in range(500):
            reservation = controller.reserve(1, 1)
            clock.advance(0.01)
            reservation.slot(1).release()
            reservation.close()
        return controller

    def test_a_deadline_that_is_too_close_is_refused(self, busy: AdmissionController) -> None:
        """The hundred and first in line at 100 a second is answered after about a second."""
        busy.reserve(1, 1, seconds_left=1.1).close(served=False)

        with pytest.raises(WouldMissDeadline, match=r"about 1\.0") as refused:
            busy.reserve(1, 1, seconds_left=0.9)

        assert refused.value.retry_delay_seconds == pytest.approx(0.1, abs=0.02)

    def test_the_time_in_the_model_counts(self, busy: AdmissionController, clock: FakeClock) -> None:
        """An answer comes after the turn, by as long as the device has been taking."""
        reservations = [busy.reserve(1, 1) for _ in range(50)]
        for reservation in reservations:
            reservation.slot(1).release()
        clock.advance(0.5)
        for reservation in reservations:
            reservation.close()

        with pytest.raises(WouldMissDeadline, match="about 1"):
            busy.reserve(1, 1, seconds_left=1.4)

    def test_another_callers_backlog_is_not_in_the_way(self, busy: AdmissionController) -> None:
        """Callers take turns, so a newcomer has one item of the other before its own."""
        reservation = busy.reserve(1, 1, _flow("newcomer"), seconds_left=0.1)

        assert reservation is not None

    def test_bulk_work_waits_for_all(self, busy: AdmissionController) -> None:
        """A newcomer with a bulk call is behind the others' interactive ones."""
        with pytest.raises(WouldMissDeadline):
            busy.reserve(1, 1, _flow("newcomer", Priority.BULK), seconds_left=0.1)

    def test_an_empty_room_tries(self, controller: AdmissionController) -> None:
        """Where nothing is in the way, nothing speaks against trying."""
        reservation = controller.reserve(1, 1, seconds_left=0.001)

        assert reservation is not None

    def test_who_gives_up_does_not_make_the_rest_look_faster(self, busy: AdmissionController) -> None:
        """Only turns that came count."""
        for _ in range(50):
            busy.reserve(1, 1).close(served=False)

        with pytest.raises(WouldMissDeadline):
            busy.reserve(1, 1, seconds_left=0.9)
