"""The store in memory: exact, filtered before the best are chosen, one row per key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from alignserve.search.errors import StoreError
from alignserve.search.exact import ExactStore
from alignserve.search.filters import FilterError
from alignserve.search.store import Entry
from numpy.typing import NDArray

DIMENSION = 8


def unit(seed: int) -> NDArray[np.float32]:
    vector = np.random.default_rng(seed).normal(size=DIMENSION)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def store_of(count: int, **columns: Any) -> ExactStore:
    store = ExactStore(fingerprint="f", embedding_dimension=DIMENSION)
    store.put(
        Entry(str(row), unit(row), {name: value(row) for name, value in columns.items()})
        for row in range(count)
    )
    return store


def test_the_best_rows_come_first() -> None:
    """The order is that of the cosine, whatever the length of the query."""
    store = store_of(100)
    cosines = np.array([unit(row) @ unit(1000) for row in range(100)])

    hits = store.search(5 * unit(1000), 10)

    assert [hit.key for hit in hits] == [str(row) for row in np.argsort(-cosines)[:10]]
    assert [hit.similarity for hit in hits] == pytest.approx(sorted(cosines, reverse=True)[:10], abs=1e-6)


def test_a_filter_applies_before_the_best_are_chosen() -> None:
    """Rows that meet it are found, even if all others are more similar."""
    store = store_of(100, number=lambda row: row)
    worst = sorted(range(100), key=lambda row: float(unit(row) @ unit(1000)))[:3]

    hits = store.search(unit(1000), 2, {"number": {"in": worst}})

    assert [hit.key for hit in hits] == [str(worst[2]), str(worst[1])]


@pytest.mark.parametrize("top_k", [3, 4, 100_000])
def test_more_than_there_are_gives_all(top_k: int) -> None:
    """That is no error, however much it is."""
    assert len(store_of(3).search(unit(0), top_k)) == 3


def test_an_empty_store_has_nothing() -> None:
    """Neither without nor with rows that were deleted."""
    store = store_of(2)
    store.delete(["0", "1", "not there"])

    assert store.count() == 0
    assert store.search(unit(0), 5) == []
    assert store_of(0).search(unit(0), 5) == []


def test_a_row_that_is_put_again_replaces_the_first() -> None:
    """Indexing twice doubles nothing."""
    store = store_of(3, name=lambda row: f"old {row}")
    store.put([Entry("1", unit(50), {"name": "new"})])

    (hit, *_) = store.search(unit(50), 3)

    assert store.count() == 3
    assert (hit.key, hit.columns["name"]) == ("1", "new")
    assert [entry.key for entry in store.get(["2", "not there", "1"])] == ["2", "1"]


def test_equal_rows_are_in_the_order_in_which_they_came() -> None:
    """The same query gives the same answer, also where the list is cut."""
    store = ExactStore(fingerprint="f", embedding_dimension=DIMENSION)
    store.put(Entry(str(row), unit(0), {}) for row in range(50))

    assert [hit.key for hit in store.search(unit(0), 3)] == ["0", "1", "2"]


def test_an_array_is_searched_where_it_is_and_copied_by_put() -> None:
    """A memory-mapped file of vectors stays as it is."""
    rows = np.stack([unit(row) for row in range(10)])
    rows.flags.writeable = False
    store = ExactStore.over(rows, fingerprint="f")

    assert store.search(unit(7), 1)[0].key == "7"

    store.put([Entry("7", unit(99), {}), Entry("new", unit(100), {})])
    assert store.count() == 11
    assert store.search(unit(99), 1)[0].key == "7"
    assert (rows[7] == unit(7)).all()


@pytest.mark.parametrize(
    "vector", [np.zeros(8), np.ones(7), np.full(8, np.nan)], ids=["zeros", "short", "NaN"]
)
def test_a_vector_without_direction_is_refused(vector: NDArray[np.float64]) -> None:
    """Neither stored nor asked for: no answer has NaN in it."""
    store = store_of(2)

    with pytest.raises(StoreError, match="'bad'"):
        store.put([Entry("bad", np.asarray(vector, np.float32), {})])
    with pytest.raises(ValueError, match="8 finite numbers"):
        store.search(np.asarray(vector, np.float32), 1)
    assert store.count() == 2


def test_a_column_has_values_of_one_kind() -> None:
    """Otherwise no filter could compare them."""
    store = store_of(1, number=lambda row: row)
    store.put([Entry("b", unit(1), {"number": 1.5}), Entry("c", unit(2), {"number": None})])

    with pytest.raises(StoreError, match="column 'number'"):
        store.put([Entry("d", unit(3), {"number": "three"})])
    with pytest.raises(FilterError, match="'three' is not of that kind"):
        store.search(unit(0), 1, {"number": "three"})


def test_columns_for_programs_are_not_shown() -> None:
    """An index keeps its own notes in the store."""
    store = ExactStore(fingerprint="f", embedding_dimension=DIMENSION)
    store.put([Entry("a", unit(0), {"alignserve.version": "1", "text": "t"})])

    assert store.columns() == {"text": "string"}
    assert store.search(unit(0), 1)[0].columns == {"text": "t"}
    assert list(store.values(["alignserve.version"])) == [("a", {"alignserve.version": "1"})]
