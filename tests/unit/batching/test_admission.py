"""Which calls are admitted, which wait and which are refused."""

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
OPEN_ITEMS, OPEN_BYTES = 6, 600  # three quarters: the most that one class may fill
OWN_ITEMS, OWN_BYTES = 2, 200  # a quarter: the other class cannot fill it

_numbers = itertools.count()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def controller(clock: FakeClock) -> AdmissionController:
    return AdmissionController("image", QueueLimits(MAX_ITEMS, MAX_BYTES), clock=clock)


def _fits(controller: AdmissionController, items: int, size_bytes: int = 0) -> bool:
    """Returns whether a call of a new caller is admitted."""
    try:
        controller.reserve(items, size_bytes, Flow(f"caller {next(_numbers)}", Priority.INTERACTIVE))
    except QueueFull:
        return False
    return True


async def _wait(
    controller: AdmissionController, items: int, size_bytes: int = 0
) -> asyncio.Task[Reservation]:
    """Starts waiting for room; the task is done once the room is granted."""
    task = asyncio.create_task(controller.wait(items, size_bytes))
    await settle()
    return task


@pytest.mark.parametrize(
    ("items", "size_bytes", "fits"),
    [(0, 0, True), (1, 1, True), (5, 599, True), (6, 1, False), (1, 600, False)],
    ids=["nothing", "one", "exactly full", "an item over", "a byte over"],
)
def test_unary_calls_fill_three_quarters(
    controller: AdmissionController, items: int, size_bytes: int, fits: bool
) -> None:
    """Items and bytes are bounded separately, and each bound is inclusive."""
    controller.reserve(1, 1)

    assert _fits(controller, items, size_bytes) is fits


@pytest.mark.parametrize(
    ("items", "size_bytes", "enters"),
    [(5, 0, True), (6, 0, False), (1, 599, True), (1, 600, False)],
    ids=["exactly full", "an item over", "bytes exactly full", "a byte over"],
)
async def test_waiting_calls_fill_three_quarters(
    controller: AdmissionController, items: int, size_bytes: int, enters: bool
) -> None:
    """The same bounds hold for both classes of callers."""
    (await _wait(controller, 1, 1)).result()

    task = await _wait(controller, items, size_bytes)

    assert task.done() is enters


async def test_unary_calls_do_not_starve_waiting_calls(controller: AdmissionController) -> None:
    """Unary calls always leave a quarter of the room to streams and label prompts."""
    while _fits(controller, 1, 100):
        pass

    tasks = [await _wait(controller, 1, 100) for _ in range(OWN_ITEMS + 1)]

    assert [task.done() for task in tasks] == [True] * OWN_ITEMS + [False]


async def test_waiting_calls_do_not_starve_unary_calls(controller: AdmissionController) -> None:
    """Streams always leave a quarter of the room to unary calls."""
    tasks = [await _wait(controller, 1, 100) for _ in range(MAX_ITEMS)]

    fits = [_fits(controller, 1, 100) for _ in range(OWN_ITEMS + 1)]

    assert sum(task.done() for task in tasks) == OPEN_ITEMS
    assert fits == [True] * OWN_ITEMS + [False]


async def test_a_class_beyond_its_own_share_waits_for_open_room(
    controller: AdmissionController,
) -> None:
    """A class's own share covers everything that it holds, not each call."""
    controller.reserve(4, 0)
    await _wait(controller, OWN_ITEMS)

    more = await _wait(controller, 1)

    assert not more.done()


async def test_many_small_items_do_not_reduce_the_share_of_bytes(controller: AdmissionController) -> None:
    """A class with many small items still has its share of bytes."""
    controller.reserve(1, OPEN_BYTES)
    await _wait(controller, OWN_ITEMS + 1, 10)

    task = await _wait(controller, 1, 10)

    assert task.done()


@pytest.mark.parametrize(("items", "size_bytes"), [(1000, 1), (1, 1_000_000)])
def test_an_empty_queue_admits_a_call_above_the_limits(
    controller: AdmissionController, items: int, size_bytes: int
) -> None:
    """No call is refused forever; a queue with such a call is full."""
    controller.reserve(items, size_bytes)

    assert not _fits(controller, 1, 1)


async def test_a_call_above_the_limits_waits_for_an_empty_queue(controller: AdmissionController) -> None:
    """A call above the limits is admitted only by itself."""
    reservation = controller.reserve(1, 1)
    task = await _wait(controller, 100, 100)
    waits_before = not task.done()

    reservation.close()
    await settle()

    assert waits_before
    assert task.done()


def test_an_item_taken_by_a_lane_frees_its_room(controller: AdmissionController) -> None:
    """Each item frees its own bytes while its call continues."""
    reservation = controller.reserve(OPEN_ITEMS, OPEN_BYTES)

    reservation.release(1, 50)

    assert not _fits(controller, 2, 50)
    assert not _fits(controller, 1, 51)
    assert _fits(controller, 1, 50)


def test_a_call_that_ends_frees_its_remaining_room(controller: AdmissionController) -> None:
    """Room that an item has freed is not freed again."""
    with controller.reserve(OPEN_ITEMS, OPEN_BYTES) as reservation:
        reservation.release(1, 100)

    assert _fits(controller, 1, OPEN_BYTES)
    assert _fits(controller, OPEN_ITEMS - 1)
    assert not _fits(controller, 1)


def test_an_item_taken_after_its_call_ended_frees_no_room(
    controller: AdmissionController,
) -> None:
    """The lane's notification arrives through the event loop, possibly after the call has ended."""
    first = controller.reserve(OPEN_ITEMS, OPEN_BYTES)
    first.close()
    controller.reserve(OPEN_ITEMS, OPEN_BYTES)

    first.release(1, 100)

    assert not _fits(controller, 1, 100)


def test_a_refusal_reports_the_queue_and_its_limits(controller: AdmissionController) -> None:
    """The message contains the values and the limits."""
    controller.reserve(5, 70)

    with pytest.raises(QueueFull, match=r"5 image items \(70 bytes\) wait, limit 8 \(800 bytes\)"):
        controller.reserve(2, 20)


def test_a_refusal_has_a_retry_delay(controller: AdmissionController, clock: FakeClock) -> None:
    """The delay is the time to serve the waiting items at the measured rate."""
    reservations = [controller.reserve(1, 0) for _ in range(OPEN_ITEMS)]
    waiting = []
    for reservation in reservations:
        clock.advance(0.5)
        reservation.release(1, 0)
        waiting.append(controller.reserve(1, 0))

    with pytest.raises(QueueFull) as refused:
        controller.reserve(1, 0)

    assert refused.value.retry_delay_seconds == pytest.approx(len(waiting) * 0.5, rel=0.1)


@pytest.mark.parametrize(("seconds", "delay"), [(0.0, 0.02), (3600.0, 30.0)])
def test_the_retry_delay_is_bounded(
    controller: AdmissionController, clock: FakeClock, seconds: float, delay: float
) -> None:
    """The delay has a minimum and a maximum, whatever was measured."""
    controller.reserve(OPEN_ITEMS, 0)
    clock.advance(seconds)

    with pytest.raises(QueueFull) as refused:
        controller.reserve(1, 0)

    assert refused.value.retry_delay_seconds == delay


def test_a_refused_call_takes_no_room(controller: AdmissionController) -> None:
    """A smaller call still fits after a larger one was refused."""
    controller.reserve(5, 5)
    is_refused = not _fits(controller, 4, 4)

    assert is_refused
    assert _fits(controller, 1, 1)


async def test_a_queue_is_crowded_when_the_next_call_would_wait(controller: AdmissionController) -> None:
    """Calls whose labels would have to wait are refused; calls whose labels have room are not."""
    controller.reserve(OPEN_ITEMS, 0)
    controller.check_not_crowded()
    await _wait(controller, OWN_ITEMS)

    with pytest.raises(QueueFull):
        controller.check_not_crowded()


async def test_a_waiting_call_makes_the_queue_crowded(controller: AdmissionController) -> None:
    """A small call that would fit would still wait behind a large one."""
    controller.reserve(1, 0)
    await _wait(controller, MAX_ITEMS)

    with pytest.raises(QueueFull):
        controller.check_not_crowded()


async def test_room_is_granted_in_order_of_waiting(controller: AdmissionController) -> None:
    """Waiting calls are admitted in order while they fit; a small call does not overtake a large one."""
    reservation = (await _wait(controller, OPEN_ITEMS)).result()
    tasks = [await _wait(controller, items) for items in (1, 2, 4, 1)]

    for _ in range(3):
        reservation.release(1, 0)
    await settle()

    assert [task.done() for task in tasks] == [True, True, False, False]


async def test_a_new_call_does_not_overtake_waiting_calls(controller: AdmissionController) -> None:
    """While a call waits, later calls wait behind it even if there is room for them."""
    await _wait(controller, OPEN_ITEMS - 1)
    await _wait(controller, 2)

    newcomer = await _wait(controller, 1)

    assert not newcomer.done()


async def test_a_cancelled_call_lets_the_next_one_in(controller: AdmissionController) -> None:
    """The cancelled call took no room; a smaller one behind it is admitted at once."""
    await _wait(controller, OPEN_ITEMS - 1)
    large, small = await _wait(controller, 2), await _wait(controller, 1)

    large.cancel()
    await settle()

    assert large.cancelled()
    assert small.done()


async def test_room_granted_during_cancellation_goes_to_the_next(controller: AdmissionController) -> None:
    """A call that is cancelled after room was granted, but before it ran, returns the room."""
    reservation = (await _wait(controller, OPEN_ITEMS)).result()
    leaving, next_one = await _wait(controller, 4), await _wait(controller, 4)

    reservation.close()
    leaving.cancel()
    await settle()

    assert leaving.cancelled()
    assert next_one.done()


async def test_a_cancelled_call_is_granted_no_room(controller: AdmissionController) -> None:
    """A call that was cancelled but has not run since is skipped."""
    reservation = (await _wait(controller, OPEN_ITEMS)).result()
    leaving, next_one = await _wait(controller, 4), await _wait(controller, 4)

    leaving.cancel()
    reservation.close()
    await settle()

    assert next_one.done()


async def test_no_room_leaks(controller: AdmissionController) -> None:
    """After all calls have waited, been cancelled or ended, the queue is empty."""
    reservation = controller.reserve(OPEN_ITEMS, OPEN_BYTES)
    gone, came = await _wait(controller, 3, 20), await _wait(controller, 2, 30)

    gone.cancel()
    reservation.close()
    (await came).close()

    assert _fits(controller, 1000, 1_000_000)


def _flow(caller: str, priority: Priority = Priority.INTERACTIVE) -> Flow:
    return Flow(caller, priority)


class TestFairShares:
    """No caller can take all the room."""

    def test_a_flood_leaves_room_for_other_callers(self) -> None:
        """A caller that takes all it can leaves an eighth of the room of its class."""
        controller = AdmissionController("text", QueueLimits(1024, 1 << 20))

        admitted = 0
        for _ in range(1024):
            with suppress(QueueFull):
                controller.reserve(1, 1, _flow("flood"))
                admitted += 1

        assert admitted == 1024 * 3 // 4 * 7 // 8

    def test_two_floods_share_the_room(self) -> None:
        """As room is freed, the caller that holds more is refused until both hold the same."""
        controller = AdmissionController("text", QueueLimits(1024, 1 << 20))
        held: dict[str, list[Reservation]] = {"early": [], "late": []}
        for caller in [*["early"] * 1000, *["early", "late"] * 2000]:
            if sum(map(len, held.values())) > 600 and held["early"]:
                held["early" if len(held["early"]) > len(held["late"]) else "late"].pop(0).close()
            with suppress(QueueFull):
                held[caller].append(controller.reserve(1, 1, _flow(caller)))

        assert len(held["late"]) == pytest.approx(len(held["early"]), rel=0.1)

    async def test_waiting_callers_take_turns(self, controller: AdmissionController) -> None:
        """A caller with one stream does not wait behind another caller's hundred streams."""
        reservation = (await _wait(controller, OPEN_ITEMS)).result()
        flood = [asyncio.create_task(controller.wait(1, 0, _flow("flood"))) for _ in range(100)]
        await settle()
        small = asyncio.create_task(controller.wait(1, 0, _flow("small")))
        await settle()

        for _ in range(2):
            reservation.release(1, 0)
        await settle()

        assert small.done()
        assert sum(task.done() for task in flood) == 1
        for task in flood:
            task.cancel()

    async def test_another_callers_line_is_not_crowding(self, controller: AdmissionController) -> None:
        """A caller that holds nothing is next, however many calls of another caller wait."""
        controller.reserve(OPEN_ITEMS, 0)
        await _wait(controller, OWN_ITEMS)
        await _wait(controller, 1)

        controller.check_not_crowded(_flow("newcomer"))


class TestDeadlines:
    """A call that cannot be answered in time is refused at once."""

    @pytest.fixture
    def busy(self, clock: FakeClock) -> AdmissionController:
        """A queue of a hundred calls; one has its turn every 10 ms and is answered at once."""
        controller = AdmissionController("image", QueueLimits(1000, 1000), clock=clock)
        for _ in range(100):
            controller.reserve(1, 1)
        for _ in range(500):
            reservation = controller.reserve(1, 1)
            clock.advance(0.01)
            reservation.release(1, 1)
            reservation.close()
        return controller

    def test_a_deadline_that_is_too_close_is_refused(self, busy: AdmissionController) -> None:
        """The hundred and first call is answered after about a second at 100 calls/s."""
        busy.reserve(1, 1, seconds_left=1.1).close(served=False)

        with pytest.raises(WouldMissDeadline, match=r"about 1\.0") as refused:
            busy.reserve(1, 1, seconds_left=0.9)

        assert refused.value.retry_delay_seconds == pytest.approx(0.1, abs=0.02)

    def test_the_time_in_the_model_counts(self, busy: AdmissionController, clock: FakeClock) -> None:
        """The estimate includes the measured time from a turn to the answer."""
        reservations = [busy.reserve(1, 1) for _ in range(50)]
        for reservation in reservations:
            reservation.release(1, 1)
        clock.advance(0.5)
        for reservation in reservations:
            reservation.close()

        with pytest.raises(WouldMissDeadline, match="about 1"):
            busy.reserve(1, 1, seconds_left=1.4)

    def test_another_callers_backlog_does_not_count(self, busy: AdmissionController) -> None:
        """Callers take turns, so at most one item of the other caller is served before a newcomer's."""
        reservation = busy.reserve(1, 1, _flow("newcomer"), seconds_left=0.1)

        assert reservation is not None

    def test_bulk_work_waits_for_all_other_work(self, busy: AdmissionController) -> None:
        """A newcomer's bulk call waits behind the interactive calls of the others."""
        with pytest.raises(WouldMissDeadline):
            busy.reserve(1, 1, _flow("newcomer", Priority.BULK), seconds_left=0.1)

    def test_an_empty_queue_admits_any_deadline(self, controller: AdmissionController) -> None:
        """If nothing is ahead, the call is tried even with a short deadline."""
        reservation = controller.reserve(1, 1, seconds_left=0.001)

        assert reservation is not None

    def test_calls_that_give_up_do_not_raise_the_rate(self, busy: AdmissionController) -> None:
        """Only served items count."""
        for _ in range(50):
            busy.reserve(1, 1).close(served=False)

        with pytest.raises(WouldMissDeadline):
            busy.reserve(1, 1, seconds_left=0.9)
