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
        """With nobody to share with it is a queue like any other."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("a"), 4)

        served = _served(queue, 4)

        assert served == ["a0", "a1", "a2", "a3"]

    def test_callers_take_turns_whatever_each_has_waiting(self) -> None:
        """Two items of a small caller are not behind a hundred of a large one."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("flood"), 100)
        _push(queue, _flow("b"), 2)

        served = _served(queue, 4)

        assert Counter(name[0] for name in served) == {"f": 2, "b": 2}

    def test_a_newcomer_starts_level(self) -> None:
        """Who was served before owes nothing, and who was away has saved up nothing."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("a"), 60)
        _served(queue, 20)
        _push(queue, _flow("b"), 60)

        served = _served(queue, 40)

        counts = Counter(name[0] for name in served)
        assert abs(counts["a"] - counts["b"]) <= 1

    def test_iteration_is_the_order_of_service(self) -> None:
        """A batch that is collected from the front is what would be served one by one."""
        queue: FairQueue[str] = FairQueue()
        for caller, count in (("a", 5), ("b", 2), ("c", 3)):
            _push(queue, _flow(caller), count)

        order = list(queue)

        assert order == _served(queue, 10)

    def test_bulk_gets_its_share_and_no_more(self) -> None:
        """While interactive work never ends, one item in seventeen is a bulk one."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("i"), 1000)
        _push(queue, _flow("b", Priority.BULK), 1000)

        served = Counter(name[0] for name in _served(queue, 170))

        assert served["b"] == pytest.approx(170 * BULK_SHARE / (1 + BULK_SHARE), abs=1)

    def test_bulk_alone_is_served_at_once(self) -> None:
        """Its share is of what others want too."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("b", Priority.BULK), 3)

        served = _served(queue, 3)

        assert served == ["b0", "b1", "b2"]

    def test_who_leaves_unserved_is_not_charged(self) -> None:
        """A caller who cancelled a thousand calls is no further back than one who made none."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("a"), 10)
        _push(queue, _flow("b"), 1000)
        for number in range(1000):
            queue.discard(f"b{number}")
        _push(queue, _flow("b"), 1, first=1000)

        order = list(queue)

        assert order.index("b1000") <= 1

    def test_discard_says_whether_the_item_waited(self) -> None:
        """What was served or never came cannot be discarded."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("a"), 2)
        _served(queue, 1)

        assert not queue.discard("a0")
        assert queue.discard("a1")
        assert not queue.discard("a1")
        assert len(queue) == 0

    def test_many_callers_who_came_and_went_leave_nothing(self) -> None:
        """Memory is that of callers who wait, not of all that ever did."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("stays"), 100_000)

        for number in range(10_000):
            queue.push(_flow(f"guest {number}"), f"guest {number}")
            _served(queue, 2)

        assert len(queue._lines) < 200


class TestSharedItems:
    """One item that several callers want."""

    def test_the_first_turn_serves_it(self) -> None:
        """Whoever wants the last item of a long line has it in its own turn."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("flood"), 100)

        queue.push(_flow("small"), "flood99")

        assert "flood99" in _served(queue, 2)

    def test_it_is_served_once(self) -> None:
        """Nobody has it again at a later turn."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("a"), 3)
        queue.push(_flow("b"), "a2")

        served = _served(queue, 3)

        assert sorted(served) == ["a0", "a1", "a2"]
        assert len(queue) == 0

    def test_only_the_flow_whose_turn_it_was_is_charged(self) -> None:
        """Who had it thanks to another's turn is no further back, be it taken alone or in a batch."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("a"), 20)
        _push(queue, _flow("b"), 20)
        queue.push(_flow("a"), "b19")
        for number in range(10):
            queue.push(_flow("c"), f"b{number + 9}")  # of b's, the last but one first

        served = [item for batch in range(4) for item in _batch(queue, 5)]

        first_turns = Counter("c" if item in SHARED else item[0] for item in served[:15])
        assert first_turns == {"a": 5, "b": 5, "c": 5}

    def test_it_stays_for_the_others_when_one_leaves(self) -> None:
        """And goes with the last."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("a"), 2)
        queue.push(_flow("b"), "a1")

        queue.leave(_flow("a"), "a1")
        stays = list(queue)
        queue.leave(_flow("b"), "a1")

        assert sorted(stays) == ["a0", "a1"]
        assert list(queue) == ["a0"]

    def test_many_callers_of_one_item_cost_no_more_than_their_coming(self) -> None:
        """Taking an item does not go through what else waits."""
        queue: FairQueue[str] = FairQueue()
        _push(queue, _flow("a"), 10_000)
        for number in range(100):
            queue.push(_flow(f"guest {number}"), "a9999")

        served = _served(queue, 2)

        assert "a9999" in served


SHARED = {f"b{number}" for number in range(9, 19)}


def _batch(queue: FairQueue[str], size: int) -> list[str]:
    """Serves some items at once, not in the order of their turns."""
    batch = list(itertools.islice(queue, size))[::-1]
    queue.take(batch)
    return batch


class Serving(RuleBasedStateMachine):
    """A fair queue beside one that is written down as simply as it can be."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue()
        self.lines: dict[Flow, list[int]] = {}
        self.tags: dict[Flow, float] = {}
        self.now = 0.0
        self.count = 0

    @rule(flow=_FLOWS, count=st.integers(1, 5))
    def push(self, flow: Flow, count: int) -> None:
        """A caller comes."""
        for _ in range(count):
            self.count += 1
            self._add(flow, self.count)

    @rule(flow=_FLOWS, number=_NUMBERS)
    def share(self, flow: Flow, number: int) -> None:
        """A caller wants what another has here."""
        if there := self._there():
            item = there[number % len(there)]
            if item not in self.lines.get(flow, []):
                self._add(flow, item)

    @rule(flow=_FLOWS, number=_NUMBERS)
    def leave(self, flow: Flow, number: int) -> None:
        """A caller leaves."""
        if line := self.lines.get(flow):
            item = line.pop(number % len(line))
            self.queue.leave(flow, item)
            self._reset_if_empty()

    @rule(number=_NUMBERS)
    def discard(self, number: int) -> None:
        """An item is removed, whoever wants it."""
        if there := self._there():
            item = there[number % len(there)]
            assert self.queue.discard(item)
            assert not self.queue.discard(item)
            self._remove(item)

    @rule(size=st.integers(1, 6), is_reversed=st.booleans())
    def take(self, size: int, is_reversed: bool) -> None:
        """Some are served."""
        batch = list(itertools.islice(self.queue, size))
        assert batch == [self._serve() for _ in batch]
        if is_reversed:
            batch.reverse()
        self.queue.take(batch)

    @invariant()
    def each_is_there_once(self) -> None:
        """Iteration yields all that is there, and the length is that number."""
        items = list(self.queue)
        assert sorted(items) == sorted(self._there())
        assert len(self.queue) == len(items)

    def teardown(self) -> None:
        """All that is left is served in order."""
        while self._there():
            self.take(1, False)
        assert len(self.queue) == 0

    def _there(self) -> list[int]:
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
        if not self._there():
            self.lines.clear()
            self.tags.clear()
            self.now = 0.0


TestServing = Serving.TestCase


class TestFairGate:
    """Jobs that wait for one of a number of places."""

    async def test_callers_take_turns_at_the_gate(self) -> None:
        """One job of a small caller is not behind all of a large one's."""
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

    async def test_who_leaves_the_line_takes_no_place(self) -> None:
        """Whether its turn has come meanwhile or not."""
        semaphore = FairSemaphore(1)
        await semaphore.acquire(_flow("a"))
        waiting = [asyncio.create_task(semaphore.acquire(_flow(caller))) for caller in "bcd"]
        await settle()

        waiting[0].cancel()  # its turn has not come
        await settle()
        semaphore.release()
        waiting[1].cancel()  # its turn has come, but it has not run since
        await settle()

        assert waiting[2].done()
        assert not waiting[2].cancelled()

    async def test_the_last_to_leave_leaves_the_gate_as_it_was(self) -> None:
        """Places are neither lost nor made."""
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
    """Threads whose jobs take turns."""

    async def test_results_come_in_the_order_of_the_jobs(self) -> None:
        """Whichever ends first."""
        with ThreadPoolExecutor(2) as threads:
            results = await FairPool(threads, 2).run(_flow("a"), [partial(str, i) for i in range(10)])

        assert results == [str(i) for i in range(10)]

    async def test_callers_take_turns(self) -> None:
        """One job of a small caller is not behind all of a large one's."""
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

    async def test_a_caller_who_leaves_takes_its_jobs_along(self) -> None:
        """Those that have not begun; the next caller is not held up by them."""
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

    async def test_a_job_that_fails_frees_its_place(self) -> None:
        """The error is the caller's; the others go on."""
        with ThreadPoolExecutor(1) as threads:
            pool = FairPool(threads, 1)
            for _ in range(3):
                with pytest.raises(ZeroDivisionError):
                    await pool.run(_flow("a"), [partial(divmod, 1, 0)])

            assert await pool.run(_flow("b"), [partial(str, 1)]) == ["1"]
