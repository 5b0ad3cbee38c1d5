"""Recall, against a search by brute force."""

from __future__ import annotations

import numpy as np
from alignserve.search.recall import RecallMeter


def measure(exact: np.ndarray, approximate: np.ndarray, own: np.ndarray | None = None, batch: int = 64):
    meter = RecallMeter(len(exact), own)
    for start in range(0, exact.shape[1], batch):
        part = slice(start, start + batch)
        numbers = np.arange(exact.shape[1])[part]
        meter.add(exact[:, part].astype(np.float32), approximate[:, part].astype(np.float32), numbers)
    return meter.result()


def test_recall_is_that_of_a_search_by_brute_force(rng: np.random.Generator) -> None:
    """Batches make no difference, and re-ranking finds what is among the first 100."""
    exact = rng.standard_normal((20, 500))
    noisy = exact + rng.standard_normal(exact.shape)
    true = np.argsort(-exact)[:, :10]
    first = np.argsort(-noisy)

    found = measure(exact, noisy)

    assert found.at_10 == np.mean([len({*a} & {*b}) / 10 for a, b in zip(true, first[:, :10], strict=True)])
    assert found.reranked_at_10 == np.mean(
        [len({*a} & {*b}) / 10 for a, b in zip(true, first[:, :100], strict=True)]
    )
    assert (found.queries, found.rows) == (20, 500)


def test_an_exact_search_has_full_recall(rng: np.random.Generator) -> None:
    """Also over fewer rows than ten."""
    for rows in (3, 10, 300):
        exact = rng.standard_normal((5, rows))
        assert measure(exact, exact * 2).at_10 == 1


def test_duplicates_count_for_each_other() -> None:
    """If eleven rows are alike, it does not matter which ten of them are found."""
    exact = np.concatenate([np.ones((1, 11)), np.zeros((1, 100))], axis=1)
    approximate = exact + np.linspace(0, 0.1, 111)[::-1]

    assert measure(exact, approximate).at_10 == 1
    assert measure(exact, -approximate).at_10 == 0


def test_a_query_does_not_find_itself(rng: np.random.Generator) -> None:
    """A vector that is stored and asked for would be an easy hit."""
    exact = rng.standard_normal((1, 50))
    exact[0, 7] = 9
    approximate = np.zeros_like(exact)
    approximate[0, 7] = 9

    found = measure(exact, approximate, own=np.array([7]))

    assert found.at_10 < 1
    assert found.rows == 50


def test_without_rows_there_is_no_recall() -> None:
    """It is 0, and nothing fails."""
    assert RecallMeter(3).result().at_10 == 0
