"""Large stores: the index finds what a comparison of all rows finds, also by filters and after changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from alignserve.search import Entry, Store, create_store
from alignserve.search.exact import ExactStore

from tests.client.search.rows import DIMENSION, NEEDS_LANCEDB, entry, vector

pytestmark = NEEDS_LANCEDB

ROWS = 3000


@pytest.fixture(scope="module", autouse=True)
def small_is_large() -> Iterator[None]:
    """Stores have an index from a thousand rows on."""
    from alignserve.search.stores import tuning  # imports LanceDB

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "EXACT_ROWS", 1000)
        patch.setattr(tuning, "_ROWS_PER_PARTITION", 256)
        yield


@pytest.fixture(scope="module")
def rows() -> list[Entry]:
    return [entry(f"row {number}", number, {"number": number}) for number in range(ROWS)]


@pytest.fixture(scope="module")
def indexed(
    rows: list[Entry], small_is_large: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    """A store with an index, which tests only read."""
    store = create_store(
        tmp_path_factory.mktemp("indexed") / "store",
        fingerprint="fake-8",
        model="fake",
        embedding_dimension=DIMENSION,
    )
    store.put(rows)
    store.optimize()
    yield store
    store.close()


@pytest.fixture(scope="module")
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


def test_rows_that_came_after_the_index_are_found(store: Store, rows: list[Entry]) -> None:
    """Changed rows have their new vector, and deleted rows are gone."""
    store.put(rows)
    store.optimize()
    store.put([Entry("new", vector(77_777), {}), Entry("row 1", vector(88_888), {})])
    store.delete(["row 2"])

    assert store.search(vector(77_777), 1)[0].key == "new"
    assert store.search(vector(88_888), 1)[0].key == "row 1"
    assert store.search(vector(2), 1)[0].key != "row 2"
    store.optimize()
    assert store.search(vector(77_777), 1)[0].key == "new"
    assert store.search(vector(88_888), 1)[0].key == "row 1"
    assert store.search(vector(2), 1)[0].key != "row 2"
    assert store.count() == ROWS


def test_a_store_that_grows_needs_no_second_training(store: Store, rows: list[Entry]) -> None:
    """Rows are added to the index, and all are found."""
    store.put(rows[:1100])
    store.optimize()
    store.put(rows[1100:])
    store.optimize()

    assert store.search(vector(2345), 1)[0].key == "row 2345"
    assert len({hit.key for hit in store.search(vector(0), ROWS)}) == ROWS
