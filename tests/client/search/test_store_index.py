"""Large stores: the index finds what a comparison of all rows finds, also by filters and after changes."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("lancedb")

from alignserve.search import Entry, Store
from alignserve.search.exact import ExactStore
from alignserve.search.stores import tuning

from tests.client.search.rows import DIMENSION, entry, vector

ROWS = 3000


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores have an index from a thousand rows on."""
    monkeypatch.setattr(tuning, "EXACT_ROWS", 1000)
    monkeypatch.setattr(tuning, "_ROWS_PER_PARTITION", 256)


@pytest.fixture
def rows() -> list[Entry]:
    return [entry(f"row {number}", number, {"number": number}) for number in range(ROWS)]


@pytest.fixture
def indexed(store: Store, rows: list[Entry]) -> Store:
    """A store with an index."""
    store.put(rows)
    store.optimize()
    return store


@pytest.fixture
def exact(rows: list[Entry]) -> ExactStore:
    made = ExactStore(fingerprint="fake-8", embedding_dimension=DIMENSION)
    made.put(rows)
    return made


def recall(store: Store, exact: ExactStore, top_k: int = 10, where: dict[str, Any] | None = None) -> float:
    found = 0
    for seed in range(20):
        query = vector(10_000 + seed)
        hits = {hit.key for hit in store.search(query, top_k, where)}
        found += len(hits & {hit.key for hit in exact.search(query, top_k, where)})
    return found / (20 * top_k)


def test_the_index_finds_the_nearest_rows(indexed: Store, exact: ExactStore) -> None:
    """Random vectors have no clusters, and are the hardest for partitions."""
    assert recall(indexed, exact) >= 0.95


def test_similarities_are_those_of_the_exact_vectors(indexed: Store) -> None:
    """The index only proposes; the vectors decide."""
    (hit,) = indexed.search(vector(7), 1)

    assert hit.key == "row 7"
    assert hit.similarity == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("where", [{"number": {"min": 2990}}, {"number": {"min": 100}}, {"number": 5}])
def test_filters_come_first_with_an_index_too(
    indexed: Store, exact: ExactStore, where: dict[str, Any]
) -> None:
    """Few matching rows and many."""
    matching = len(exact.search(vector(0), ROWS, where))

    assert recall(indexed, exact, min(10, matching), where) >= 0.95
    assert len(indexed.search(vector(0), ROWS, where)) == matching


def test_top_k_above_the_index_returns_all(indexed: Store) -> None:
    """An index reads some partitions; more rows than they have come from a comparison of all."""
    assert len(indexed.search(vector(0), 900)) == 900
    assert len(indexed.search(vector(0), ROWS + 1)) == ROWS


def test_rows_that_came_after_the_index_are_found(indexed: Store) -> None:
    """Changed rows have their new vector, and deleted rows are gone."""
    indexed.put([Entry("new", vector(77_777), {}), Entry("row 1", vector(88_888), {})])
    indexed.delete(["row 2"])

    assert indexed.search(vector(77_777), 1)[0].key == "new"
    assert indexed.search(vector(88_888), 1)[0].key == "row 1"
    assert indexed.search(vector(2), 1)[0].key != "row 2"
    indexed.optimize()
    assert indexed.search(vector(77_777), 1)[0].key == "new"
    assert indexed.search(vector(88_888), 1)[0].key == "row 1"
    assert indexed.search(vector(2), 1)[0].key != "row 2"
    assert indexed.count() == ROWS


def test_a_store_that_grows_needs_no_second_training(store: Store, rows: list[Entry]) -> None:
    """Rows are added to the index, and all are found."""
    store.put(rows[:1100])
    store.optimize()
    store.put(rows[1100:])
    store.optimize()

    assert store.search(vector(2345), 1)[0].key == "row 2345"
    assert len({hit.key for hit in store.search(vector(0), ROWS)}) == ROWS
