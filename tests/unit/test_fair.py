"""Callers take turns, and interactive work goes before bulk work without starving it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from alignserve_server.batching.fair import BULK_SHARE, FairGate, FairQueue, Flow, Priority

from tests.unit.fakes import settle


def _flow(caller: str, priority: Priority = Priority.INTERACTIVE) -> Flow:
    return Flow(caller, priority)


def _push(queue: FairQueue[str], flow: Flow, count: int, *, first: int = 0) -> None:
    for number in range(first, first + count):
        queue.push(flow, f"{flow.caller}{number}")


def _served(queue: FairQueue[str], count: int) -> list[str]:
    served = []
    for _ in range(count):
        item = next(iter(queue))
        queue.take(item)
        served.append(item)
    return served


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


class TestFairGate:
    """Jobs that wait for one of a number of places."""

    async def test_callers_take_turns_at_the_gate(self) -> None:
        """One job of a small caller is not behind all of a large one's."""
        gate, entered = FairGate(1), []

        async def job(caller: str) -> None:
            await gate.enter(_flow(caller))
            entered.append(caller)

        jobs = [asyncio.create_task(job(caller)) for caller in ("flood",) * 10 + ("small",)]
        await settle()
        for _ in range(10):
            gate.leave()
            await settle()

        assert entered.index("small") == 2
        assert all(task.done() for task in jobs)

    async def test_who_leaves_the_line_takes_no_place(self) -> None:
        """Whether its turn has come meanwhile or not."""
        gate = FairGate(1)
        await gate.enter(_flow("a"))
        waiting = [asyncio.create_task(gate.enter(_flow(caller))) for caller in "bcd"]
        await settle()

        waiting[0].cancel()  # its turn has not come
        await settle()
        gate.leave()
        waiting[1].cancel()  # its turn has come, but it has not run since
        await settle()

        assert waiting[2].done()
        assert not waiting[2].cancelled()

    async def test_the_last_to_leave_leaves_the_gate_as_it_was(self) -> None:
        """Places are neither lost nor made."""
        gate = FairGate(2)
        tasks = [asyncio.create_task(gate.enter(_flow(caller))) for caller in "abcde"]
        await settle()
        tasks[3].cancel()
        await settle()
        for _ in range(4):
            gate.leave()
            await settle()

        tasks = [asyncio.create_task(gate.enter(_flow(caller))) for caller in "abc"]
        await settle()

        assert [task.done() for task in tasks] == [True, True, False]
        tasks[2].cancel()
