"""The queue of one modality."""

from __future__ import annotations

from alignserve_server.batching.fair_queue import Priority
from alignserve_server.batching.queue import Entry, EntryQueue

from tests.unit.fakes import entry, names


def _waiting(queue: EntryQueue, priority: Priority = Priority.INTERACTIVE) -> list[Entry]:
    return list(queue.of(priority))


def test_a_new_queue_is_empty() -> None:
    """It has no entries and no bytes."""
    queue = EntryQueue()

    assert not queue
    assert queue.size_bytes == 0


def test_entries_keep_their_order_of_arrival() -> None:
    """Iteration starts with the oldest entry."""
    queue = EntryQueue()

    for name in "abc":
        queue.push(entry(name))

    assert names(_waiting(queue)) == ["a", "b", "c"]


def test_discard_removes_an_entry_and_its_bytes() -> None:
    """The other entries keep their order."""
    queue = EntryQueue()
    first, second, third = entry("a", size_bytes=1), entry("b", size_bytes=10), entry("c", size_bytes=100)
    for each in (first, second, third):
        queue.push(each)

    was_waiting = queue.discard(second)

    assert was_waiting
    assert names(_waiting(queue)) == ["a", "c"]
    assert queue.size_bytes == 101


def test_discarding_twice_removes_once() -> None:
    """A removed entry is reported as not waiting, and its bytes are subtracted once."""
    queue = EntryQueue()
    only = entry(size_bytes=5)
    queue.push(only)
    queue.discard(only)

    was_waiting = queue.discard(only)

    assert not was_waiting
    assert queue.size_bytes == 0


def test_a_taken_entry_can_no_longer_be_discarded() -> None:
    """An entry in a batch is no longer in the queue."""
    queue = EntryQueue()
    first, second = entry("a"), entry("b")
    queue.push(first)
    queue.push(second)

    queue.take(Priority.INTERACTIVE, [first])

    assert not queue.discard(first)
    assert _waiting(queue) == [second]


def test_entries_are_compared_by_identity() -> None:
    """Two entries with the same payload wait separately."""
    queue = EntryQueue()
    first, second = entry("same"), entry("same")
    queue.push(first)
    queue.push(second)

    queue.discard(second)

    assert _waiting(queue) == [first]
