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
    """Runs both modalities with a full backlog on `lanes` lanes; returns the time that each one got."""
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


class TestTaking:
    """How many entries a batch takes, and when."""

    def test_nothing_waiting_gives_no_batch(self) -> None:
        """A free lane with empty queues has nothing to run."""
        scheduler = _scheduler()

        batch = scheduler.next_batch(0.0)

        assert batch is None

    @pytest.mark.parametrize(("waiting", "taken"), [(1, 1), (3, 3), (4, 4), (5, 4)])
    def test_takes_at_once_what_waits_up_to_the_largest_batch(self, waiting: int, taken: int) -> None:
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

    def test_an_entry_that_nobody_wants_never_runs(self) -> None:
        """Its place and bytes are free at once."""
        scheduler = _scheduler()
        gone, stays = entry("gone", size_bytes=7), entry("stays", size_bytes=3)
        scheduler.push("text", gone)
        scheduler.push("text", stays)

        scheduler.leave("text", gone, gone.flow)

        assert scheduler.waiting_bytes("text") == 3
        assert names(_next(scheduler).entries) == ["stays"]

    def test_an_entry_in_a_batch_cannot_be_joined(self) -> None:
        """Once taken it runs, in nobody's line any more."""
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

    def test_an_uneven_spread_leaves_less_to_the_later_lane(self) -> None:
        """Three entries and two lanes make batches of two and one."""
        scheduler = _scheduler(max_batch_size=4)
        _push(scheduler, "image", 3)

        first = _next(scheduler, idle_lanes=2)
        second = _next(scheduler, idle_lanes=1)

        assert [len(first.entries), len(second.entries)] == [2, 1]

    def test_more_idle_lanes_than_entries_take_one_each(self) -> None:
        """A single entry goes to a single lane."""
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

    def test_a_small_batch_runs_when_the_delay_of_its_oldest_is_over(self) -> None:
        """The delay counts from the oldest entry; younger ones go with it."""
        scheduler = _scheduler(max_queue_delay_seconds=0.5)
        _push(scheduler, "image", 1, time=10.0)
        _push(scheduler, "image", 1, time=10.4)

        batch = _next(scheduler, 10.5)

        assert len(batch.entries) == 2

    def test_a_full_batch_is_not_held_back(self) -> None:
        """There is nothing left to wait for."""
        scheduler = _scheduler(max_batch_size=4, max_queue_delay_seconds=0.5)
        _push(scheduler, "image", 4, time=10.0)

        batch = _next(scheduler, 10.0)

        assert len(batch.entries) == 4

    def test_the_rest_of_a_full_batch_is_held_back_again(self) -> None:
        """One over a full batch waits for its own delay."""
        scheduler = _scheduler(max_batch_size=4, max_queue_delay_seconds=0.5)
        _push(scheduler, "image", 5, time=10.0)
        _next(scheduler, 10.0)

        batch = scheduler.next_batch(10.0)

        assert batch is None
        assert scheduler.next_due_time() == 10.5

    def test_a_ripe_modality_does_not_wait_for_the_one_held_back(self) -> None:
        """Each queue ripens on its own, whoever's turn it would be."""
        scheduler = _scheduler(max_queue_delay_seconds=0.5)
        _push(scheduler, "image", 1, time=10.4)
        _push(scheduler, "text", 1, time=10.0)

        batch = _next(scheduler, 10.5)

        assert batch.modality == "text"
        assert scheduler.next_batch(10.5) is None

    def test_draining_ignores_the_delay(self) -> None:
        """A server that stops holds nothing back."""
        scheduler = _scheduler(max_queue_delay_seconds=60.0)
        _push(scheduler, "image", 1)

        batch = scheduler.next_batch(0.0, is_draining=True)

        assert batch is not None

    def test_empty_queues_have_no_due_time(self) -> None:
        """A lane then waits for entries, not for a time."""
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
        """However much dearer the batches of one are, neither gets more than the other."""
        costs = {"image": image_cost, "text": text_cost}

        used = _seconds_by_modality(_scheduler(), costs, batches=5000, lanes=lanes)

        assert used["image"] == pytest.approx(used["text"], rel=0.05, abs=2 * lanes * max(costs.values()))

    def test_no_credit_is_saved_while_the_other_modality_works(self) -> None:
        """A modality that comes back from idleness gets its half from now on, not the time that it missed."""
        scheduler = _scheduler()
        for _ in range(100):
            _push(scheduler, "image", 4)
            scheduler.finish(_next(scheduler), 1.0)
        _push(scheduler, "image", 4)

        used = _seconds_by_modality(scheduler, {"image": 1.0, "text": 1.0}, batches=20)

        assert used["image"] == pytest.approx(used["text"], abs=2.0)

    def test_no_credit_is_saved_while_both_are_idle(self) -> None:
        """Who comes first after a pause in which nothing ran owns no past either."""
        scheduler = _scheduler()
        for _ in range(100):
            _push(scheduler, "image", 4)
            scheduler.finish(_next(scheduler), 1.0)
        _push(scheduler, "text", 4)

        used = _seconds_by_modality(scheduler, {"image": 1.0, "text": 1.0}, batches=20)

        assert used["image"] == pytest.approx(used["text"], abs=2.0)

    def test_no_credit_is_saved_by_a_light_load_that_never_quite_ends(self) -> None:
        """A modality that keeps one of four lanes busy asked for no more, so the rest is not owed to it."""
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
        """After one slow image batch, texts may use as much before the next image."""
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

    def test_one_odd_batch_moves_the_estimate_only_a_little(self) -> None:
        """A hiccup ten times as long as usual does not make it ten times as large."""
        scheduler = _scheduler(max_batch_size=1)
        _push(scheduler, "image", 3)
        scheduler.finish(_next(scheduler), 1.0)

        scheduler.finish(_next(scheduler), 10.0)

        assert 1.0 < _next(scheduler).estimated_seconds < 4.0

    def test_out_of_memory_halves_the_batch_that_failed(self) -> None:
        """Batches of the other modality stay as they are."""
        scheduler = _scheduler(max_batch_size=32)

        limit = scheduler.shrink("image", failed_size=32)

        assert limit == scheduler.max_batch_size("image") == 16
        assert scheduler.max_batch_size("text") == 32

    def test_a_batch_never_exceeds_the_shrunk_limit(self) -> None:
        """What ran out of memory once is not tried again at that size."""
        scheduler = _scheduler(max_batch_size=8)
        _push(scheduler, "image", 8)
        scheduler.shrink("image", failed_size=8)

        batch = _next(scheduler)

        assert len(batch.entries) == 4

    def test_a_later_failure_of_an_older_batch_does_not_raise_the_limit(self) -> None:
        """Two lanes can fail with batches of the old size; the smaller limit stands."""
        scheduler = _scheduler(max_batch_size=32)
        scheduler.shrink("image", failed_size=8)

        limit = scheduler.shrink("image", failed_size=32)

        assert limit == 4

    def test_an_entry_that_does_not_fit_alone_leaves_the_limit(self) -> None:
        """It fails alone; that says nothing of batches."""
        scheduler = _scheduler(max_batch_size=4)

        limit = scheduler.shrink("image", failed_size=1)

        assert limit == 4

    def test_a_lowered_limit_recovers_after_many_full_batches(self) -> None:
        """What took the memory may have gone: larger batches are tried again, up to the first limit."""
        scheduler = _scheduler(max_batch_size=3)
        scheduler.shrink("image", failed_size=2)
        limits = []

        for _ in range(200):
            _push(scheduler, "image", scheduler.max_batch_size("image"))
            scheduler.finish(_next(scheduler), 0.1)
            limits.append(scheduler.max_batch_size("image"))

        assert [limits[0], limits[98], limits[99], limits[198], limits[199]] == [1, 1, 2, 2, 3]


class TestCallersAndPriorities:
    """Whose entries go first."""

    def test_callers_take_turns_in_a_batch(self) -> None:
        """A caller with two entries is in the next batch of one with a hundred."""
        scheduler = _scheduler(max_batch_size=4)
        for caller, count in (("flood", 100), ("small", 2)):
            for number in range(count):
                flow = Flow(caller, Priority.INTERACTIVE)
                scheduler.push("image", entry(f"{caller}-{number}", flow=flow))

        batch = _next(scheduler)

        assert sorted(names(batch.entries)) == ["flood-0", "flood-1", "small-0", "small-1"]

    def test_interactive_entries_overtake_bulk_ones(self) -> None:
        """They run next, and no bulk entry makes their batch longer."""
        scheduler = _scheduler(max_batch_size=4)
        _push_bulk(scheduler, "text", 8)
        scheduler.finish(_next(scheduler), 1.0)
        _push(scheduler, "text", 1)

        batch = _next(scheduler)

        assert names(batch.entries) == ["text-0"]

    def test_interactive_entries_overtake_bulk_ones_of_the_other_modality(self) -> None:
        """The device is shared by urgency first."""
        scheduler = _scheduler(max_batch_size=4)
        _push_bulk(scheduler, "text", 8)
        scheduler.finish(_next(scheduler), 1.0)
        _push(scheduler, "image", 1)

        batch = _next(scheduler)

        assert batch.modality == "image"

    def test_bulk_entries_do_not_starve(self) -> None:
        """While interactive ones never end, bulk ones get their share of the device."""
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

    def test_what_waits_counts_both_priorities(self) -> None:
        """Entries and bytes of a modality are one number each."""
        scheduler = _scheduler()
        _push(scheduler, "text", 2)
        _push_bulk(scheduler, "text", 3)

        assert scheduler.waiting("text") == 5
        assert scheduler.waiting_bytes("text") == 5


def _push_bulk(scheduler: Scheduler, modality: str, count: int) -> None:
    for number in range(count):
        scheduler.push(modality, entry(f"bulk-{number}", flow=Flow("", Priority.BULK)))
