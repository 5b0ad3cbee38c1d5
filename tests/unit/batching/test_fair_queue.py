"""Callers take turns, and interactive work goes before bulk work without starving it."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from alignserve_server.batching.fair_queue import (
    BULK_SHARE,
    FairPool,
    FairQueue,
    FairSemaphore,
    Flow,
    Priority,
)
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.unit.fakes import settle

_FLOWS = st.builds(Flow, st.sampled_from("abc"), st.sampled_from(Priority))
_NUMBERS = st.integers(0, 99)


def _flow(caller: str, priority: Priority = Priority.INTERACTIVE) -> Flow:
    return Flow(caller, priority)


def _push(queue: FairQueue[str], flow: Flow, count: int, *, first: int = 0) -> None:
    for number in range(first, first + count):
        queue.push(flow, f"{flow.caller}{number}")


def _served(queue: FairQueue[str], count: int) -> list[str]:
    return [queue.pop() for _ in range(count)]


class TestFairQueue:
    """The order in which items are served."""

    def test_one_callers_items_stay_in_order(self) -> None:
        """With a single caller it is a plain queue."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("a"), 4)

        served = _served(queue, 4)

        assert served == ["a0", "a1", "a2", "a3"]

    def test_callers_take_turns_however_much_each_has_waiting(self) -> None:
        """Two items of a small caller do not wait behind a hundred of a large one."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("flood"), 100)
        _push(queue, _flow("b"), 2)

        served = _served(queue, 4)

        assert Counter(name[0] for name in served) == {"f": 2, "b": 2}

    def test_a_newcomer_starts_level(self) -> None:
        """A caller that was served before owes nothing; one that was idle has earned no credit."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("a"), 60)
        _served(queue, 20)
        _push(queue, _flow("b"), 60)

        served = _served(queue, 40)

        counts = Counter(name[0] for name in served)
        assert abs(counts["a"] - counts["b"]) <= 1

    def test_iteration_is_the_order_of_service(self) -> None:
        """A batch collected from the front has the items that would be served one by one."""
        queue: FairQueue[str] = FairQueue()
        for caller, count in (("a", 5), ("b", 2), ("c", 3)):
            _push(queue, _flow(caller), count)

        order = list(queue)

        assert order == _served(queue, 10)

    def test_bulk_gets_its_share_and_no_more(self) -> None:
        """Under constant interactive load, one item in seventeen is bulk."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("i"), 1000)
        _push(queue, _flow("b", Priority.BULK), 1000)

        served = Counter(name[0] for name in _served(queue, 170))

        assert served["b"] == pytest.approx(170 * BULK_SHARE / (1 + BULK_SHARE), abs=1)

    def test_bulk_is_served_at_once_if_nothing_else_waits(self) -> None:
        """The share applies only under contention."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("b", Priority.BULK), 3)

        served = _served(queue, 3)

        assert served == ["b0", "b1", "b2"]

    def test_items_removed_unserved_are_not_charged(self) -> None:
        """A caller that cancelled a thousand calls keeps the place of one that made none."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("a"), 10)
        _push(queue, _flow("b"), 1000)
        for number in range(1000):
            queue.discard(f"b{number}")
        _push(queue, _flow("b"), 1, first=1000)

        order = list(queue)

        assert order.index("b1000") <= 1

    def test_discard_returns_whether_the_item_waited(self) -> None:
        """A served or discarded item cannot be discarded again."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("a"), 2)
        _served(queue, 1)

        assert not queue.discard("a0")
        assert queue.discard("a1")
        assert not queue.discard("a1")
        assert len(queue) == 0

    def test_callers_that_no_longer_wait_use_no_memory(self) -> None:
        """Memory grows with the callers that wait now, not with all that ever waited."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("stays"), 100_000)

        for number in range(10_000):
            queue.push(_flow(f"guest {number}"), f"guest {number}")
            _served(queue, 2)

        assert len(queue._lines) < 200


class TestSharedItems:
    """Items that several callers want."""

    def test_the_first_turn_serves_a_shared_item(self) -> None:
        """A caller that wants the last item of another's long line gets it at its own turn."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("flood"), 100)

        queue.push(_flow("small"), "flood99")

        assert "flood99" in _served(queue, 2)

    def test_a_shared_item_is_served_once(self) -> None:
        """It is not served again at another caller's later turn."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("a"), 3)
        queue.push(_flow("b"), "a2")

        served = _served(queue, 3)

        assert sorted(served) == ["a0", "a1", "a2"]
        assert len(queue) == 0

    def test_only_the_flow_whose_turn_it_was_is_charged(self) -> None:
        """A caller served at another's turn keeps its place, even if items are taken in batches."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("a"), 20)
        _push(queue, _flow("b"), 20)
        queue.push(_flow("a"), "b19")
        for number in range(10):
            queue.push(_flow("c"), f"b{number + 9}")  # b's items, starting with the one before the last

        served = [item for batch in range(4) for item in _batch(queue, 5)]

        first_turns = Counter("c" if item in SHARED else item[0] for item in served[:15])
        assert first_turns == {"a": 5, "b": 5, "c": 5}

    def test_a_shared_item_stays_until_its_last_caller_leaves(self) -> None:
        """It stays for the others when one caller leaves."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("a"), 2)
        queue.push(_flow("b"), "a1")

        queue.leave(_flow("a"), "a1")
        stays = list(queue)
        queue.leave(_flow("b"), "a1")

        assert sorted(stays) == ["a0", "a1"]
        assert list(queue) == ["a0"]

    def test_taking_an_item_of_many_callers_is_fast(self) -> None:
        """Taking an item does not iterate over the rest of the queue."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("a"), 10_000)
        for number in range(100):
            queue.push(_flow(f"guest {number}"), "a9999")

        served = _served(queue, 2)

        assert "a9999" in served


SHARED = {f"b{number}" for number in range(9, 19)}


def _batch(queue: FairQueue[str], size: int) -> list[str]:
    """Serves several items at once, in reverse order of their turns."""
    batch = list(itertools.islice(queue, size))[::-1]
    queue.take(batch)
    return batch


class Serving(RuleBasedStateMachine):
    """Compares a fair queue with the simplest possible implementation."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue()
        self.lines: dict[Flow, list[int]] = {}
        self.tags: dict[Flow, float] = {}
        self.now = 0.0
        self.count = 0

    @rule(flow=_FLOWS, count=st.integers(1, 5))
    def push(self, flow: Flow, count: int) -> None:
        """A caller pushes items."""
        for _ in range(count):
            self.count += 1
            self._add(flow, self.count)

    @rule(flow=_FLOWS, number=_NUMBERS)
    def share(self, flow: Flow, number: int) -> None:
        """A caller also wants an item of another caller."""
        if present := self._present():
            item = present[number % len(present)]
            if item not in self.lines.get(flow, []):
                self._add(flow, item)

    @rule(flow=_FLOWS, number=_NUMBERS)
    def leave(self, flow: Flow, number: int) -> None:
        """A caller no longer wants an item."""
        if line := self.lines.get(flow):
            item = line.pop(number % len(line))
            self.queue.leave(flow, item)
            self._reset_if_empty()

    @rule(number=_NUMBERS)
    def discard(self, number: int) -> None:
        """An item is removed for all its callers."""
        if present := self._present():
            item = present[number % len(present)]
            assert self.queue.discard(item)
            assert not self.queue.discard(item)
            self._remove(item)

    @rule(size=st.integers(1, 6), is_reversed=st.booleans())
    def take(self, size: int, is_reversed: bool) -> None:
        """A batch of items is served."""
        batch = list(itertools.islice(self.queue, size))
        assert batch == [self._serve() for _ in batch]
        if is_reversed:
            batch.reverse()
        self.queue.take(batch)

    @invariant()
    def each_item_is_present_once(self) -> None:
        """Iteration yields every item once, and the length is their number."""
        items = list(self.queue)
        assert sorted(items) == sorted(self._present())
        assert len(self.queue) == len(items)

    def teardown(self) -> None:
        """The remaining items are served in order."""
        while self._present():
            self.take(1, False)
        assert len(self.queue) == 0

    def _present(self) -> list[int]:
        return sorted({item for line in self.lines.values() for item in line})

    def _add(self, flow: Flow, item: int) -> None:
        self.queue.push(flow, item)
        pace = 1 / flow.priority.value
        line = self.lines.setdefault(flow, [])
        if not line:
            self.tags[flow] = max(self.tags.get(flow, 0.0), self.now + pace - 1.0)
        line.append(item)

    def _serve(self) -> int:
        flows = [flow for flow, line in self.lines.items() if line]
        flow = min(flows, key=lambda each: self.tags[each])
        item = self.lines[flow][0]
        self.now = max(self.now, self.tags[flow])
        self.tags[flow] += 1 / flow.priority.value
        self._remove(item)
        return item

    def _remove(self, item: int) -> None:
        for line in self.lines.values():
            if item in line:
                line.remove(item)
        self._reset_if_empty()

    def _reset_if_empty(self) -> None:
        if not self._present():
            self.lines.clear()
            self.tags.clear()
            self.now = 0.0


TestServing = Serving.TestCase


class TestFairSemaphore:
    """Jobs that wait for a permit."""

    async def test_callers_take_turns_at_permits(self) -> None:
        """A caller's single job does not wait for all jobs of a large caller."""
        semaphore, entered = FairSemaphore(1), []

        async def job(caller: str) -> None:
            await semaphore.acquire(_flow(caller))
            entered.append(caller)

        jobs = [asyncio.create_task(job(caller)) for caller in ("flood",) * 10 + ("small",)]
        await settle()
        for _ in range(10):
            semaphore.release()
            await settle()

        assert entered.index("small") == 2
        assert all(task.done() for task in jobs)

    async def test_a_cancelled_job_takes_no_permit(self) -> None:
        """This holds before and after a permit was granted to it."""
        semaphore = FairSemaphore(1)
        await semaphore.acquire(_flow("a"))
        waiting = [asyncio.create_task(semaphore.acquire(_flow(caller))) for caller in "bcd"]
        await settle()

        waiting[0].cancel()  # before its turn
        await settle()
        semaphore.release()
        waiting[1].cancel()  # after its turn, but before it has run
        await settle()

        assert waiting[2].done()
        assert not waiting[2].cancelled()

    async def test_all_permits_are_free_again_in_the_end(self) -> None:
        """No permit is lost or added."""
        semaphore = FairSemaphore(2)
        tasks = [asyncio.create_task(semaphore.acquire(_flow(caller))) for caller in "abcde"]
        await settle()
        tasks[3].cancel()
        await settle()
        for _ in range(4):
            semaphore.release()
            await settle()

        tasks = [asyncio.create_task(semaphore.acquire(_flow(caller))) for caller in "abc"]
        await settle()

        assert [task.done() for task in tasks] == [True, True, False]
        tasks[2].cancel()


class TestFairPool:
    """A thread pool in which callers take turns."""

    async def test_results_come_in_the_order_of_the_jobs(self) -> None:
        """The order does not depend on which job ends first."""
        with ThreadPoolExecutor(2) as threads:
            results = await FairPool(threads, 2).run(_flow("a"), [partial(str, i) for i in range(10)])

        assert results == [str(i) for i in range(10)]

    async def test_callers_take_turns(self) -> None:
        """A caller's single job does not wait for all jobs of a large caller."""
        ran: list[str] = []
        with ThreadPoolExecutor(1) as threads:
            pool, may_go = FairPool(threads, 1), threading.Event()
            flood_jobs = [partial(ran.append, "flood")] * 5
            first = asyncio.create_task(pool.run(_flow("first"), [may_go.wait]))
            await settle()
            floods = [asyncio.create_task(pool.run(_flow("flood"), flood_jobs)) for _ in range(5)]
            await settle()
            small = asyncio.create_task(pool.run(_flow("small"), [partial(ran.append, "small")]))
            await settle()
            may_go.set()
            await asyncio.gather(first, small, *floods)

        assert ran.index("small") <= 2
        assert len(ran) == 26

    async def test_cancelling_drops_jobs_that_have_not_started(self) -> None:
        """The next caller does not wait for them."""
        ran: list[str] = []
        with ThreadPoolExecutor(1) as threads:
            pool, may_go = FairPool(threads, 2), threading.Event()
            jobs: list[Callable[[], object]] = [may_go.wait, *[partial(ran.append, "left")] * 5]
            leaving = asyncio.create_task(pool.run(_flow("a"), jobs))
            await settle()
            leaving.cancel()
            await asyncio.wait([leaving])
            may_go.set()
            await pool.run(_flow("b"), [partial(ran.append, "next")])

        assert ran == ["next"]

    async def test_a_failed_job_frees_its_permit(self) -> None:
        """The caller gets the error, and later jobs run."""
        with ThreadPoolExecutor(1) as threads:
            pool = FairPool(threads, 1)
            for _ in range(3):
                with pytest.raises(ZeroDivisionError):
                    await pool.run(_flow("a"), [partial(divmod, 1, 0)])

            assert await pool.run(_flow("b"), [partial(str, 1)]) == ["1"]


@pytest.mark.parametrize("priority", Priority)
def test_items_added_together_are_served_as_if_added_one_by_one(priority: Priority) -> None:
    """In order, at the turns of their flow, next to another that has items already."""
    together, alone = FairQueue[str](), FairQueue[str]()
    flow, other = Flow("a", priority), Flow("b", Priority.INTERACTIVE)
    for queue in (together, alone):
        for item in ("b1", "b2", "b3"):
            queue.push(other, item)
        queue.pop()

    together.extend(flow, ["a1", "a2", "a3"])
    for item in ("a1", "a2", "a3"):
        alone.push(flow, item)

    assert not together.isdisjoint(["x", "a3"])
    assert [together.pop() for _ in range(5)] == [alone.pop() for _ in range(5)]
    assert together.isdisjoint(["x", "a3"])


def test_an_item_of_several_can_be_shared_and_leave() -> None:
    """Items that were added together are independent of each other."""
    queue = FairQueue[str]()
    one, other = Flow("a", Priority.INTERACTIVE), Flow("b", Priority.INTERACTIVE)
    queue.extend(one, ["first", "second"])

    queue.push(other, "second")
    queue.leave(one, "first")
    queue.leave(one, "second")

    assert list(queue) == ["second"]
    assert queue.isdisjoint(["first"])
