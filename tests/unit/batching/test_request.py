"""Batches build up the answer of a request."""

from __future__ import annotations

import numpy as np
from alignserve_server.batching.fair_queue import ANONYMOUS
from alignserve_server.batching.request import BatchResult, Embedded, Request

DIMENSION = 4


def _request(items: int) -> Request:
    return Request("text", [1] * items, ANONYMOUS, lambda _: None, enqueue_time=1.0)


def _batch(rows: int, *, start: float = 2.0, seconds: float = 0.5, number: int = 1) -> BatchResult:
    """A batch whose rows differ from each other and from those of other batches."""
    embeddings = np.arange(rows * DIMENSION, dtype=np.float32).reshape(rows, DIMENSION) + 1000 * number
    return BatchResult(embeddings, start, seconds, (0, number))


def test_an_answer_of_one_batch_is_complete_at_once() -> None:
    """It has the batch's figures."""
    batch = _batch(3)

    answer = _request(2).take([0, 1], batch, [0, 2])

    assert answer is not None
    np.testing.assert_array_equal(answer.embeddings, batch.embeddings[[0, 2]])
    assert answer[1:] == (1.0, 0.5, 3, 0, frozenset({(0, 1)}))


def test_rows_come_in_the_order_of_the_items() -> None:
    """A batch is ordered by length."""
    batch = _batch(4)

    answer = _request(3).take([2, 0, 1], batch, [0, 1, 3])

    assert answer is not None
    np.testing.assert_array_equal(answer.embeddings, batch.embeddings[[1, 3, 0]])


def test_a_batch_in_order_is_not_copied() -> None:
    """The answer is a part of it."""
    batch = _batch(5)

    answer = _request(3).take([0, 1, 2], batch, [1, 2, 3])

    assert answer is not None
    assert answer.embeddings.base is not None
    assert np.shares_memory(answer.embeddings, batch.embeddings)


def test_an_answer_of_several_batches_has_the_largest_figures() -> None:
    """And all their embeddings in place."""
    request = _request(3)
    first, second = _batch(2, number=1), _batch(5, start=4.0, seconds=0.25, number=2)

    nothing = request.take([2, 0], first, [0, 1])
    answer = request.take([1], second, [4])

    assert nothing is None
    assert isinstance(answer, Embedded)
    expected = [first.embeddings[1], second.embeddings[4], first.embeddings[0]]
    np.testing.assert_array_equal(answer.embeddings, expected)
    assert answer[1:] == (3.0, 0.5, 5, 0, frozenset({(0, 1), (0, 2)}))


def test_an_item_that_joined_a_running_entry_has_not_waited() -> None:
    """Its batch began before it came."""
    answer = _request(1).take([0], _batch(1, start=0.5), [0])

    assert answer is not None
    assert answer.queue_seconds == 0.0
