"""The items of a stream, without a stream."""

from __future__ import annotations

import pytest
from alignserve import AlignserveError, TextItem
from alignserve._ledger import Ledger
from alignserve.v1 import align_service_pb2 as pb


def entered(ledger: Ledger, *names: str) -> None:
    for name in names:
        ledger.enter(TextItem(name, id=name), pb.StreamInferRequest())


def answer(ledger: Ledger, number: int) -> None:
    response = pb.StreamInferResponse(correlation_id=str(number))
    response.classify.results.add()
    ledger.answer(response)


def taken(ledger: Ledger) -> list[str]:
    return [result.id for result in iter(ledger.take, None)]


def test_room_lasts_until_the_window_is_full_and_returns_with_each_result() -> None:
    """An item takes its place from its reading until its result is handed out."""
    ledger = Ledger(2, ordered=False)
    entered(ledger, "a", "b")
    full = not ledger.has_room
    answer(ledger, 0)
    still_full = not ledger.has_room
    ledger.take()

    assert (full, still_full, ledger.has_room) == (True, True, True)


def test_results_leave_as_they_are_answered() -> None:
    """Without order, a result does not wait for those before it."""
    ledger = Ledger(3, ordered=False)
    entered(ledger, "a", "b", "c")
    answer(ledger, 2)

    assert taken(ledger) == ["c"]


def test_ordered_results_wait_for_those_before_them() -> None:
    """With order, answers and items that failed in the client leave in the order of reading."""
    ledger = Ledger(3, ordered=True)
    entered(ledger, "a")
    ledger.enter(TextItem("b", id="b"), AlignserveError("unreadable"))
    entered(ledger, "c")
    answer(ledger, 2)
    before = taken(ledger)
    answer(ledger, 0)

    assert before == []
    assert taken(ledger) == ["a", "b", "c"]


def test_a_new_connection_is_given_what_is_unanswered_in_order() -> None:
    """What was answered, or failed in the client, is not sent again."""
    ledger = Ledger(4, ordered=False)
    entered(ledger, "a", "b")
    ledger.enter(TextItem("x", id="x"), AlignserveError("unreadable"))
    entered(ledger, "d")
    answer(ledger, 0)

    sent, after = [], -1
    while (unsent := ledger.next_unsent(after)) is not None:
        after, request = unsent
        sent.append(request.correlation_id)

    assert sent == ["1", "3"]


@pytest.mark.parametrize("correlation_id", ["0", "7", "", "x"])
def test_answers_that_nobody_waits_for_are_ignored(correlation_id: str) -> None:
    """A second answer, or one to an unknown id, changes nothing."""
    ledger = Ledger(2, ordered=False)
    entered(ledger, "a")
    answer(ledger, 0)
    taken(ledger)

    ledger.answer(pb.StreamInferResponse(correlation_id=correlation_id))

    assert ledger.take() is None


def test_it_is_done_when_all_is_read_and_handed_out() -> None:
    """The end of the items is not the end of the stream; the last result is."""
    ledger = Ledger(2, ordered=False)
    entered(ledger, "a")
    ledger.is_complete = True
    before = ledger.is_done
    answer(ledger, 0)
    taken(ledger)

    assert (before, ledger.is_done) == (False, True)
