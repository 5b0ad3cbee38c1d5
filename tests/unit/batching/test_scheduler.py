"""What a free lane runs next, and how two modalities share a device."""

from __future__ import annotations

import pytest
from alignserve_server.batching.fair_queue import BULK_SHARE, Flow, Priority
from alignserve_server.batching.scheduler import Batch, BatchPolicy, Scheduler

from tests.unit.fakes import entry, names


def _scheduler(
    max_batch_size: int = 4, *, overhead: int = 0, max_queue_delay_seconds: float = 0.0
) -> Scheduler:
    policies = {"image": BatchPolicy(max_batch_size), "text": BatchPolicy(max_batch_size, overhead)}
    return Scheduler(policies, max_queue_delay_seconds)


def _push(scheduler: Scheduler, modality: str, count: int, *, time: float = 0.0) -> None:
    for number in range(count):
        scheduler.push(modality, entry(f"{modality}-{number}", enqueue_time=time))


def _next(scheduler: Scheduler, now: float = 0.0, *, idle_lanes: int = 1) -> Batch:
    batch = scheduler.next_batch(now, idle_lanes)
    assert batch is not None
    return batch


def _seconds_by_modality(
    scheduler: Scheduler, costs: dict[str, float], batches: int, lanes: int = 1
) -> dict[str, float]:
    """Runs both modalities with a full backlog on `lanes` lanes; returns the time of each."""
    used = dict.fromkeys(costs, 0.0)
    running: list[tuple[float, Batch]] = []
    now = 0.0
    for _ in range(batches):
        for modality in costs:
            _push(scheduler, modality, 8 - scheduler.waiting(modality))
        while len(running) < lanes:
            batch = _next(scheduler, now)
            running.append((now + costs[batch.modality], batch))
        now, done = min(running, key=lambda each: each[0])
        running.remove((now, done))
        scheduler.finish(done, costs[done.modality])
        used[done.modality] += costs[done.modality]
    return used


class TestLanesPerModality:
    """A modality may have fewer lanes than there are."""

    def _scheduler(self) -> Scheduler:
        policies = {"image": BatchPolicy(4), "text": BatchPolicy(4)}
        return Scheduler(policies, lanes_per_modality=2)

    def test_a_third_lane_is_left_to_the_other_modality(self) -> None:
        """Images have two lanes. A text that arrives then runs at once, on the third."""
        scheduler = self._scheduler()
        _push(scheduler, "image", 16)
        scheduler.finish(_next(scheduler), 1.0)
        _next(scheduler), _next(scheduler)

        third = scheduler.next_batch(0.0)
        _push(scheduler, "text", 1)
        fourth = _next(scheduler)

        assert third is None
        assert fourth.modality == "text"

    def test_a_lane_waits_for_a_batch_to_end(self) -> None:
        """No time makes the next batch due, but the end of one of the same modality does."""
        scheduler = self._scheduler()
        _push(scheduler, "image", 12)
        first, _ = _next(scheduler), _next(scheduler)

        held_back = scheduler.next_batch(0.0)
        due_time = scheduler.next_due_time()
        scheduler.finish(first, 1.0)
        third = _next(scheduler)

        assert held_back is None
        assert due_time is None
        assert third.modality == "image"

    def test_the_other_modality_does_not_take_more_than_its_turns(self) -> None:
        """If images have used less time, a free lane waits for their turn rather than running a text."""
        scheduler = self._scheduler()
        _push(scheduler, "text", 4)
        scheduler.finish(_next(scheduler), 9.0)
        _push(scheduler, "image", 16)
        _push(scheduler, "text", 4)
        scheduler.finish(_next(scheduler), 0.1)
        _next(scheduler), _next(scheduler)

        assert scheduler.next_batch(0.0) is None


class TestTaking:
    """How many entries a batch takes, and when."""

    def test_nothing_waiting_gives_no_batch(self) -> None:
        """A free lane with empty queues has nothing to run."""
        scheduler = _scheduler()

        batch = scheduler.next_batch(0.0)

        assert batch is None

    @pytest.mark.parametrize(("waiting", "taken"), [(1, 1), (3, 3), (4, 4), (5, 4)])
    def test_takes_waiting_entries_at_once_up_to_the_limit(self, waiting: int, taken: int) -> None:
        """One, some, exactly full, one over: a free lane never waits for a fuller batch."""
        scheduler = _scheduler(max_batch_size=4)
        _push(scheduler, "image", waiting)

        batch = _next(scheduler)

        assert len(batch.entries) == taken
        assert scheduler.waiting("image") == waiting - taken

    def test_a_batch_has_one_modality(self) -> None:
        """Images and texts never share a batch."""
        scheduler = _scheduler()
        _push(scheduler, "image", 1)
        _push(scheduler, "text", 1)

        first, second = _next(scheduler), _next(scheduler)

        assert {first.modality, second.modality} == {"image", "text"}
        assert len(first.entries) == len(second.entries) == 1

    def test_an_entry_that_no_caller_wants_never_runs(self) -> None:
        """Its place and bytes are freed at once."""
        scheduler = _scheduler()
        gone, stays = entry("gone", size_bytes=7), entry("stays", size_bytes=3)
        scheduler.push("text", gone)
        scheduler.push("text", stays)

        scheduler.leave("text", gone, gone.flow)

        assert scheduler.waiting_bytes("text") == 3
        assert names(_next(scheduler).entries) == ["stays"]

    def test_an_entry_in_a_batch_cannot_be_joined(self) -> None:
        """A taken entry runs and is no longer in any line."""
        scheduler = _scheduler()
        taken = entry()
        scheduler.push("image", taken)
        _next(scheduler)

        has_joined = scheduler.join("image", taken, Flow("late", Priority.INTERACTIVE))

        assert not has_joined
        assert not scheduler.is_waiting("image", taken)

    def test_entries_are_spread_over_idle_lanes(self) -> None:
        """Four entries and two free lanes make two batches of two, not one of four."""
        scheduler = _scheduler(max_batch_size=4)
        _push(scheduler, "image", 4)

        first = _next(scheduler, idle_lanes=2)
        second = _next(scheduler, idle_lanes=1)

        assert [len(first.entries), len(second.entries)] == [2, 2]

    def test_an_uneven_spread_gives_the_later_lane_less(self) -> None:
        """Three entries and two lanes make batches of two and one."""
        scheduler = _scheduler(max_batch_size=4)
        _push(scheduler, "image", 3)

        first = _next(scheduler, idle_lanes=2)
        second = _next(scheduler, idle_lanes=1)

        assert [len(first.entries), len(second.entries)] == [2, 1]

    def test_idle_lanes_beyond_the_entries_get_nothing(self) -> None:
        """A single entry goes to one of eight lanes."""
        scheduler = _scheduler()
        _push(scheduler, "image", 1)

        batch = _next(scheduler, idle_lanes=8)

        assert len(batch.entries) == 1
        assert scheduler.next_batch(0.0, 7) is None

    def test_texts_are_grouped_by_length(self) -> None:
        """A long text does not make short ones pay for its padding."""
        scheduler = _scheduler(overhead=16)
        for name, length in (("short", 5), ("long", 60), ("also short", 6)):
            scheduler.push("text", entry(name, length=length))

        first, second = _next(scheduler), _next(scheduler)

        assert names(first.entries) == ["short", "also short"]
        assert names(second.entries) == ["long"]


class TestQueueDelay:
    """`max_queue_delay_seconds` holds a small batch back for a while."""

    def test_a_small_batch_is_held_back(self) -> None:
        """Before the delay is over, a free lane waits for more entries."""
        scheduler = _scheduler(max_queue_delay_seconds=0.5)
        _push(scheduler, "image", 3, time=10.0)

        batch = scheduler.next_batch(10.499)

        assert batch is None
        assert scheduler.next_due_time() == 10.5

    def test_a_small_batch_runs_when_its_oldest_entrys_delay_is_over(self) -> None:
        """The delay counts from the oldest entry; younger entries run with it."""
        scheduler = _scheduler(max_queue_delay_seconds=0.5)
        _push(scheduler, "image", 1, time=10.0)
        _push(scheduler, "image", 1, time=10.4)

        batch = _next(scheduler, 10.5)

        assert len(batch.entries) == 2

    def test_a_full_batch_is_not_held_back(self) -> None:
        """A full batch has nothing to wait for."""
        scheduler = _scheduler(max_batch_size=4, max_queue_delay_seconds=0.5)
        _push(scheduler, "image", 4, time=10.0)

        batch = _next(scheduler, 10.0)

        assert len(batch.entries) == 4

    def test_the_rest_of_a_full_batch_is_held_back_again(self) -> None:
        """One entry beyond a full batch waits for its own delay."""
        scheduler = _scheduler(max_batch_size=4, max_queue_delay_seconds=0.5)
        _push(scheduler, "image", 5, time=10.0)
        _next(scheduler, 10.0)

        batch = scheduler.next_batch(10.0)

        assert batch is None
        assert scheduler.next_due_time() == 10.5

    def test_a_due_modality_does_not_wait_for_one_that_is_held_back(self) -> None:
        """Each queue becomes due on its own, whichever would be next."""
        scheduler = _scheduler(max_queue_delay_seconds=0.5)
        _push(scheduler, "image", 1, time=10.4)
        _push(scheduler, "text", 1, time=10.0)

        batch = _next(scheduler, 10.5)

        assert batch.modality == "text"
        assert scheduler.next_batch(10.5) is None

    def test_draining_ignores_the_delay(self) -> None:
        """A server that is stopping holds nothing back."""
        scheduler = _scheduler(max_queue_delay_seconds=60.0)
        _push(scheduler, "image", 1)

        batch = scheduler.next_batch(0.0, is_draining=True)

        assert batch is not None

    def test_empty_queues_have_no_due_time(self) -> None:
        """A lane then waits for entries, not for a point in time."""
        scheduler = _scheduler(max_queue_delay_seconds=0.5)

        due_time = scheduler.next_due_time()

        assert due_time is None


class TestFairness:
    """Two modalities share the device by the time they use."""

    @pytest.mark.parametrize("lanes", [1, 2, 4])
    @pytest.mark.parametrize(
        ("image_cost", "text_cost"), [(1.0, 1.0), (0.1, 0.01), (0.01, 0.1), (1.0, 0.003)]
    )
    def test_backlogged_modalities_get_equal_device_time(
        self, image_cost: float, text_cost: float, lanes: int
    ) -> None:
        """Neither gets more time than the other, however much longer its batches take."""
        costs = {"image": image_cost, "text": text_cost}

        used = _seconds_by_modality(_scheduler(), costs, batches=5000, lanes=lanes)

        assert used["image"] == pytest.approx(used["text"], rel=0.05, abs=2 * lanes * max(costs.values()))

    def test_no_credit_is_earned_while_the_other_modality_works(self) -> None:
        """A modality that was idle gets half of the time from now on, not the time that it missed."""
        scheduler = _scheduler()
        for _ in range(100):
            _push(scheduler, "image", 4)
            scheduler.finish(_next(scheduler), 1.0)
        _push(scheduler, "image", 4)

        used = _seconds_by_modality(scheduler, {"image": 1.0, "text": 1.0}, batches=20)

        assert used["image"] == pytest.approx(used["text"], abs=2.0)

    def test_no_credit_is_earned_while_both_are_idle(self) -> None:
        """After a pause, the modality that was idle before has no credit either."""
        scheduler = _scheduler()
        for _ in range(100):
            _push(scheduler, "image", 4)
            scheduler.finish(_next(scheduler), 1.0)
        _push(scheduler, "text", 4)

        used = _seconds_by_modality(scheduler, {"image": 1.0, "text": 1.0}, batches=20)

        assert used["image"] == pytest.approx(used["text"], abs=2.0)

    def test_no_credit_is_earned_by_a_constant_light_load(self) -> None:
        """A modality that needed only one of four lanes is not owed the rest of its half."""
        scheduler = _scheduler(max_batch_size=1)
        _push(scheduler, "image", 1)
        image = _next(scheduler)
        for _ in range(100):
            _push(scheduler, "text", 3)
            texts = [_next(scheduler) for _ in range(3)]
            _push(scheduler, "image", 1)
            following = _next(scheduler)
            for batch in (image, *texts):
                scheduler.finish(batch, 1.0)
            image = following
        scheduler.finish(image, 1.0)

        used = _seconds_by_modality(scheduler, {"image": 1.0, "text": 1.0}, batches=40)

        assert used["image"] == pytest.approx(used["text"], abs=6.0)

    def test_a_batch_that_ran_longer_than_estimated_is_charged_in_full(self) -> None:
        """After one slow image batch, texts use as much time before the next image."""
        scheduler = _scheduler(max_batch_size=1)
        _push(scheduler, "image", 3)
        _push(scheduler, "text", 20)
        for _ in range(2):
            batch = _next(scheduler)
            scheduler.finish(batch, 10.0 if batch.modality == "image" else 1.0)

        following = []
        for _ in range(9):
            batch = _next(scheduler)
            following.append(batch.modality)
            scheduler.finish(batch, 1.0)

        assert following == ["text"] * 9


class TestEstimates:
    """What the scheduler learns from batches that have run."""

    def test_one_slow_batch_changes_the_estimate_only_a_little(self) -> None:
        """A batch ten times as slow as usual does not make the estimate ten times as large."""
        scheduler = _scheduler(max_batch_size=1)
        _push(scheduler, "image", 3)
        scheduler.finish(_next(scheduler), 1.0)

        scheduler.finish(_next(scheduler), 10.0)

        assert 1.0 < _next(scheduler).estimated_seconds < 4.0

    def test_out_of_memory_halves_the_batch_that_failed(self) -> None:
        """The limit of the other modality does not change."""
        scheduler = _scheduler(max_batch_size=32)

        limit = scheduler.shrink("image", failed_size=32)

        assert limit == scheduler.max_batch_size("image") == 16
        assert scheduler.max_batch_size("text") == 32

    def test_a_batch_never_exceeds_the_shrunk_limit(self) -> None:
        """A size that ran out of memory is not tried again."""
        scheduler = _scheduler(max_batch_size=8)
        _push(scheduler, "image", 8)
        scheduler.shrink("image", failed_size=8)

        batch = _next(scheduler)

        assert len(batch.entries) == 4

    def test_a_later_failure_of_an_older_batch_does_not_raise_the_limit(self) -> None:
        """Two lanes can fail with batches of the old size; the smaller limit stays."""
        scheduler = _scheduler(max_batch_size=32)
        scheduler.shrink("image", failed_size=8)

        limit = scheduler.shrink("image", failed_size=32)

        assert limit == 4

    def test_an_entry_that_does_not_fit_by_itself_does_not_change_the_limit(self) -> None:
        """Its failure does not depend on the batch size."""
        scheduler = _scheduler(max_batch_size=4)

        limit = scheduler.shrink("image", failed_size=1)

        assert limit == 4

    def test_a_lowered_limit_recovers_after_many_full_batches(self) -> None:
        """The memory may be free again: larger batches are tried again, up to the first limit."""
        scheduler = _scheduler(max_batch_size=3)
        scheduler.shrink("image", failed_size=2)
        limits = []

        for _ in range(200):
            _push(scheduler, "image", scheduler.max_batch_size("image"))
            scheduler.finish(_next(scheduler), 0.1)
            limits.append(scheduler.max_batch_size("image"))

        assert [limits[0], limits[98], limits[99], limits[198], limits[199]] == [1, 1, 2, 2, 3]


class TestCallersAndPriorities:
    """Which entries go first."""

    def test_callers_take_turns_in_a_batch(self) -> None:
        """A caller with two entries shares the next batch with a caller with a hundred."""
        scheduler = _scheduler(max_batch_size=4)
        for caller, count in (("flood", 100), ("small", 2)):
            for number in range(count):
                flow = Flow(caller, Priority.INTERACTIVE)
                scheduler.push("image", entry(f"{caller}-{number}", flow=flow))

        batch = _next(scheduler)

        assert sorted(names(batch.entries)) == ["flood-0", "flood-1", "small-0", "small-1"]

    def test_interactive_entries_overtake_bulk_ones(self) -> None:
        """They run next, in a batch without bulk entries."""
        scheduler = _scheduler(max_batch_size=4)
        _push_bulk(scheduler, "text", 8)
        scheduler.finish(_next(scheduler), 1.0)
        _push(scheduler, "text", 1)

        batch = _next(scheduler)

        assert names(batch.entries) == ["text-0"]

    def test_interactive_entries_overtake_bulk_ones_of_the_other_modality(self) -> None:
        """Priority comes before modality."""
        scheduler = _scheduler(max_batch_size=4)
        _push_bulk(scheduler, "text", 8)
        scheduler.finish(_next(scheduler), 1.0)
        _push(scheduler, "image", 1)

        batch = _next(scheduler)

        assert batch.modality == "image"

    def test_bulk_entries_do_not_starve(self) -> None:
        """Under constant interactive load, bulk entries get their share of the device."""
        scheduler = _scheduler(max_batch_size=4)
        seconds = dict.fromkeys(Priority, 0.0)

        for _ in range(340):
            _push(scheduler, "text", 4)
            _push_bulk(scheduler, "text", 4)
            batch = _next(scheduler)
            scheduler.finish(batch, 1.0)
            seconds[batch.priority] += 1.0

        expected = 340 * BULK_SHARE / (1 + BULK_SHARE)
        assert seconds[Priority.BULK] == pytest.approx(expected, abs=2)

    def test_waiting_entries_include_both_priorities(self) -> None:
        """Entries and bytes of a modality are counted across priorities."""
        scheduler = _scheduler()
        _push(scheduler, "text", 2)
        _push_bulk(scheduler, "text", 3)

        assert scheduler.waiting("text") == 5
        assert scheduler.waiting_bytes("text") == 5


def _push_bulk(scheduler: Scheduler, modality: str, count: int) -> None:
    for number in range(count):
        scheduler.push(modality, entry(f"bulk-{number}", flow=Flow("", Priority.BULK)))
