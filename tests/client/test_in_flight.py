"""The items in flight, without a stream."""

from __future__ import annotations

import pytest
from alignserve import AlignserveError, TextItem
from alignserve._in_flight import InFlightItems
from alignserve.v1 import align_service_pb2 as pb


def entered(in_flight: InFlightItems, *names: str) -> None:
    for name in names:
        in_flight.enter(TextItem(name, id=name), pb.StreamInferRequest())


def answer(in_flight: InFlightItems, number: int) -> None:
    response = pb.StreamInferResponse(correlation_id=str(number))
    response.classify.results.add()
    in_flight.answer(response)


def taken(in_flight: InFlightItems) -> list[str]:
    return [result.id for result in iter(in_flight.take, None)]


def test_room_lasts_until_the_window_is_full_and_returns_with_each_result() -> None:
    """An item occupies its place from when it is read until its result is taken."""
    in_flight = InFlightItems(2, ordered=False)
    entered(in_flight, "a", "b")
    full = not in_flight.has_room
    answer(in_flight, 0)
    still_full = not in_flight.has_room
    in_flight.take()

    assert (full, still_full, in_flight.has_room) == (True, True, True)


def test_a_result_that_waits_for_an_earlier_one_keeps_its_place() -> None:
    """With order, answers that came early are counted in the window until they are taken."""
    in_flight = InFlightItems(2, ordered=True)
    entered(in_flight, "a", "b")
    answer(in_flight, 1)
    full = not in_flight.has_room
    answer(in_flight, 0)
    still_full = not in_flight.has_room
    in_flight.take()

    assert (full, still_full, in_flight.has_room) == (True, True, True)


def test_results_leave_as_they_are_answered() -> None:
    """Without order, a result does not wait for those before it."""
    in_flight = InFlightItems(3, ordered=False)
    entered(in_flight, "a", "b", "c")
    answer(in_flight, 2)

    assert taken(in_flight) == ["c"]


def test_results_keep_the_order_of_their_answers() -> None:
    """Without order, also those that are taken later leave in the order in which they were answered."""
    in_flight = InFlightItems(4, ordered=False)
    entered(in_flight, "a", "b")
    in_flight.enter(TextItem("x", id="x"), AlignserveError("unreadable"))
    entered(in_flight, "d")
    for number in (3, 1, 0):
        answer(in_flight, number)

    assert taken(in_flight) == ["x", "d", "b", "a"]


def test_ordered_results_wait_for_those_before_them() -> None:
    """With order, answers and items that failed in the client are taken in the order of reading."""
    in_flight = InFlightItems(3, ordered=True)
    entered(in_flight, "a")
    in_flight.enter(TextItem("b", id="b"), AlignserveError("unreadable"))
    entered(in_flight, "c")
    answer(in_flight, 2)
    before = taken(in_flight)
    answer(in_flight, 0)

    assert before == []
    assert taken(in_flight) == ["a", "b", "c"]


def test_a_new_connection_gets_unanswered_items_in_order() -> None:
    """Items that were answered, or failed in the client, are not sent again."""
    in_flight = InFlightItems(4, ordered=False)
    entered(in_flight, "a", "b")
    in_flight.enter(TextItem("x", id="x"), AlignserveError("unreadable"))
    entered(in_flight, "d")
    answer(in_flight, 0)

    sent, after = [], -1
    while (unsent := in_flight.next_unsent(after)) is not None:
        after, request = unsent
        sent.append(request.correlation_id)

    assert sent == ["1", "3"]


@pytest.mark.parametrize("correlation_id", ["0", "7", "", "x"])
def test_unexpected_answers_are_ignored(correlation_id: str) -> None:
    """A second answer, or one to an unknown id, changes nothing."""
    in_flight = InFlightItems(2, ordered=False)
    entered(in_flight, "a")
    answer(in_flight, 0)
    taken(in_flight)

    in_flight.answer(pb.StreamInferResponse(correlation_id=correlation_id))

    assert in_flight.take() is None


def test_it_is_done_when_all_is_read_and_handed_out() -> None:
    """The end of the items is not the end of the stream; the last result is."""
    in_flight = InFlightItems(2, ordered=False)
    entered(in_flight, "a")
    in_flight.is_complete = True
    before = in_flight.is_done
    answer(in_flight, 0)
    taken(in_flight)

    assert (before, in_flight.is_done) == (False, True)
