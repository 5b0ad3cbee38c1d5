"""Stores: rows that were put are found, filters select first, and crashes do no harm."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alignserve.search import (
    Entry,
    NoStoreError,
    OtherModelError,
    Store,
    StoreBusyError,
    StoreError,
    StoreExistsError,
    create_store,
    open_store,
)
from alignserve.search.exact import ExactStore
from alignserve.search.filters import FilterError

from tests.client.search.rows import DIMENSION, NEEDS_LANCEDB, entry, vector

pytestmark = NEEDS_LANCEDB

STRANGE = [
    "it's",
    'say "hi"',
    "back\\slash",
    "back\\'slash'",
    "`backquote`",
    "two\nlines",
    "carriage\r\nreturn",
    "tab\t",
    "nul\0byte",
    "percent % under_score",
    "' OR true --",
    "/* comment */",
    "Zoë 猫 🐈",
    "e\u0301",
    "\u2028",
    "\ufeff",
    "",
    " ",
    "x" * 100_000,
]


def keys(store: Store, top_k: int = 100, **where: Any) -> set[str]:
    return {hit.key for hit in store.search(vector(0), top_k, where)}


def test_a_row_that_was_put_is_found_with_its_columns(store: Store) -> None:
    """Similarity is the cosine, whatever the length of the query."""
    columns = {"license": "CC0", "width": 640, "score": 0.5, "is_public": True}
    store.put([entry("a", 1, columns), entry("b", 2)])

    best, other = store.search(3 * vector(1), 2)

    assert (best.key, best.columns) == ("a", columns)
    assert best.similarity == pytest.approx(1, abs=1e-5)
    assert (other.key, other.columns) == ("b", {})
    assert other.similarity == pytest.approx(float(vector(1) @ vector(2)), abs=1e-5)


def test_hits_are_in_the_order_of_exact_search(store: Store) -> None:
    """The store agrees with a comparison of all rows."""
    rows = [entry(f"row {number}", number, {"number": number}) for number in range(300)]
    exact = ExactStore(fingerprint="fake-8", embedding_dimension=DIMENSION)
    store.put(rows)
    exact.put(rows)

    for seed in range(5):
        where = {"number": {"min": 50 * seed}}
        found = [hit.key for hit in store.search(vector(1000 + seed), 20, where)]

        assert found == [hit.key for hit in exact.search(vector(1000 + seed), 20, where)]


def test_an_empty_store_finds_nothing(store: Store) -> None:
    """Neither a search nor a deletion needs rows."""
    store.delete(["a"])
    store.optimize()

    assert store.search(vector(0), 10) == []
    assert store.count() == 0
    assert list(store.entries()) == []


def test_top_k_above_the_number_of_rows_returns_all(store: Store) -> None:
    """Also above 4,096, where some engines end."""
    store.put(entry(f"{number}", number) for number in range(5000))

    assert len(store.search(vector(0), 4999)) == 4999
    assert len(store.search(vector(0), 10**9)) == 5000


def test_putting_twice_doubles_nothing(store: Store) -> None:
    """The last row with a key stays, within one call too."""
    store.put([entry("a", 1, {"n": 1}), entry("b", 2)])

    store.put([entry("a", 3, {"n": 2}), entry("a", 4, {"n": 3})])

    assert store.count() == 2
    (hit,) = store.search(vector(4), 1)
    assert (hit.key, hit.columns) == ("a", {"n": 3})


def test_deleted_rows_are_gone(store: Store) -> None:
    """Keys that are not there do no harm."""
    store.put([entry(key) for key in ("a", "it's", "c")])

    store.delete(["it's", "never there", "' OR true --"])

    assert keys(store) == {"a", "c"}


def test_a_filter_selects_before_the_best_are_taken(store: Store) -> None:
    """The only matching row is found though a thousand are nearer."""
    store.put(entry(f"near {number}", 0, {"kind": "near"}) for number in range(1000))
    store.put([Entry("far", -vector(0), {"kind": "far"})])

    assert keys(store, 1, kind="far") == {"far"}


@pytest.mark.parametrize("value", STRANGE)
def test_values_and_keys_may_be_any_text(store: Store, value: str) -> None:
    """Nothing in a value is read as SQL, in equality, lists and parts of texts."""
    store.put([entry(value, 1, {"note": value}), entry("other", 2, {"note": f"-{value}-"})])

    assert keys(store, note=value) == {value}
    assert keys(store, note={"in": [value, "absent"]}) == {value}
    assert [one.key for one in store.get([value])] == [value]
    if value:
        assert keys(store, note={"contains": value}) == {value, "other"}
    store.delete([value])
    assert keys(store) == {"other"}


@pytest.mark.parametrize(
    "column",
    [
        "a.b",
        "it's",
        "`x`",
        "key",
        "embedding",
        "_distance",
        "ümläut",
        "with space",
        "%41",
        "Upper",
        "a\nb",
        "",
        "%",
    ],
)
def test_columns_may_have_any_name(store: Store, column: str) -> None:
    """Names of the engine's own columns are free, and case counts."""
    store.put([entry("yes", 1, {column: 1}), entry("no", 2, {column: 2})])

    assert store.columns() == {column: "number"}
    assert keys(store, **{column: 1}) == {"yes"}
    assert store.search(vector(1), 1)[0].columns == {column: 1}


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ({"n": 1}, "a"),
        ({"n": 1.0}, "a"),
        ({"n": {"min": 2}}, "bc"),
        ({"n": {"max": 2}}, "ab"),
        ({"n": {"min": 2, "max": 2}}, "b"),
        ({"n": {"min": 1 << 70}}, ""),
        ({"n": {"max": 1 << 70}}, "abc"),
        ({"n": None}, "d"),
        ({"n": {"in": [1, None]}}, "ad"),
        ({"n": {"in": []}}, ""),
        ({"x": 0.1}, "a"),
        ({"x": {"min": 1e-300}}, "ab"),
        ({"x": {"max": -1}}, "c"),
        ({"flag": True}, "a"),
        ({"flag": False}, "b"),
        ({"flag": None}, "cd"),
        ({"text": {"min": "b"}}, "bc"),
        ({"text": {"max": "b"}}, "ab"),
        ({"text": {"contains": "%"}}, "c"),
        ({"text": "007"}, ""),
        ({"n": {"min": 1}, "text": {"max": "a"}}, "a"),
        ({}, "abcd"),
    ],
)
def test_filters_mean_what_the_exact_store_says(store: Store, where: dict[str, Any], found: str) -> None:
    """Missing values meet only `None`; NaN is a missing value."""
    rows = [
        entry("a", 1, {"n": 1, "x": 0.1, "flag": True, "text": "a"}),
        entry("b", 2, {"n": 2, "x": 1e300, "flag": False, "text": "b"}),
        entry("c", 3, {"n": 3, "x": -1.5, "flag": None, "text": "ü%"}),
        entry("d", 4, {"x": math.nan}),
    ]
    exact = ExactStore(fingerprint="fake-8", embedding_dimension=DIMENSION)
    store.put(rows)
    exact.put(rows)

    assert keys(store, **where) == set(found)
    assert {hit.key for hit in exact.search(vector(0), 9, where)} == set(found)


def test_a_filter_on_a_missing_column_is_refused(store: Store) -> None:
    """The message names the columns that there are."""
    store.put([entry("a", 1, {"license": "CC0"})])

    with pytest.raises(FilterError, match="license"):
        store.search(vector(0), 1, {"licence": "CC0"})


@pytest.mark.parametrize("bad", [np.zeros(8), np.full(8, np.nan), np.full(8, np.inf), np.ones(7)])
def test_vectors_without_a_direction_are_refused(store: Store, bad: np.ndarray) -> None:
    """The message names the row; nothing of the call is put."""
    with pytest.raises(StoreError, match="row 'bad'"):
        store.put([entry("good"), Entry("bad", bad.astype(np.float32), {})])
    with pytest.raises(ValueError, match="vector"):
        store.search(bad.astype(np.float32), 1)
    assert store.count() == 0


def test_similarities_are_never_nan(store: Store) -> None:
    """Equal, opposite and tiny vectors have cosines from -1 to 1."""
    store.put([Entry("same", vector(0) * 1e-30, {}), Entry("opposite", -vector(0) * 1e30, {})])

    same, opposite = store.search(vector(0), 2)

    assert same.similarity == pytest.approx(1)
    assert opposite.similarity == pytest.approx(-1)
    assert -1 <= opposite.similarity <= same.similarity <= 1


def test_a_value_of_another_type_is_refused(store: Store) -> None:
    """The message names row, column and value."""
    store.put([entry("a", 1, {"width": 640})])

    with pytest.raises(StoreError, match=r"row 'b': column 'width' has whole numbers, and 'wide'"):
        store.put([entry("b", 2, {"width": "wide"})])


@pytest.mark.parametrize(
    "bad",
    [entry("\ud800"), entry("a", 1, {"note": "\ud800"}), entry("a", 1, {"\ud800": "note"})],
    ids=["key", "value", "column"],
)
def test_lone_surrogates_are_refused(store: Store, bad: Entry) -> None:
    """Neither a key nor a column can have what UTF-8 cannot express; the store still takes rows."""
    with pytest.raises(StoreError, match="surrogate"):
        store.put([bad])
    store.put([entry("good", 1, {"note": "n"})])

    with pytest.raises(FilterError, match="note"):
        store.search(vector(1), 1, {"note": "\ud800"})
    store.delete(["\ud800"])
    assert store.get(["\ud800"]) == []
    assert keys(store) == {"good"}


def test_columns_that_come_later_are_added(store: Store) -> None:
    """Rows before them have no value."""
    store.put([entry("a", 1)])
    store.put([entry("b", 2, {"new": "value"})])

    assert keys(store, new="value") == {"b"}
    assert keys(store, new=None) == {"a"}


def test_bookkeeping_is_kept_but_not_shown(store: Store) -> None:
    """Programs read it by `values` and `entries`."""
    store.put([entry("a", 1, {"alignserve.version": "1", "shown": 1})])

    assert store.columns() == {"shown": "number"}
    assert store.search(vector(1), 1)[0].columns == {"shown": 1}
    assert list(store.values(["alignserve.version", "absent"])) == [
        ("a", {"alignserve.version": "1", "absent": None})
    ]
    assert [dict(one.columns) for one in store.entries()] == [{"alignserve.version": "1", "shown": 1}]


def test_rows_survive_closing(store: Store, tmp_path: Path) -> None:
    """store.json says what the store is."""
    store.put([entry("a", 1)])
    store.close()

    reopened = open_store(tmp_path / "store", fingerprint="fake-8")

    assert reopened.search(vector(1), 1)[0].key == "a"
    assert (reopened.fingerprint, reopened.model, reopened.embedding_dimension) == (
        "fake-8",
        "fake",
        DIMENSION,
    )
    document = json.loads((tmp_path / "store/store.json").read_text())
    assert document == {
        "format": "alignserve-store",
        "version": 1,
        "engine": "lancedb",
        "fingerprint": "fake-8",
        "model": "fake",
        "embedding_dimension": DIMENSION,
    }


def test_a_store_of_another_model_is_refused(store: Store, tmp_path: Path) -> None:
    """The message has both fingerprints."""
    with pytest.raises(OtherModelError, match="fake-8, not other"):
        open_store(tmp_path / "store", fingerprint="other")


def test_a_reader_cannot_write(store: Store, tmp_path: Path) -> None:
    """Only a store that was opened for writing takes rows."""
    with pytest.raises(StoreError, match="for reading"):
        open_store(tmp_path / "store").put([entry("a")])


def test_a_second_writer_is_refused(store: Store, tmp_path: Path) -> None:
    """It may write once the first has closed the store."""
    with pytest.raises(StoreBusyError, match=f"process {os.getpid()}"):
        open_store(tmp_path / "store", for_writing=True)
    store.close()
    open_store(tmp_path / "store", for_writing=True).close()


def test_a_reader_sees_what_is_written_after_it_opened(store: Store, tmp_path: Path) -> None:
    """A long-lived reader need not open the store again."""
    reader = open_store(tmp_path / "store")
    store.put([entry("a", 1, {"new": 1})])

    assert reader.count() == 1
    assert reader.search(vector(1), 1, {"new": 1})[0].key == "a"


@pytest.mark.parametrize(
    "content", [None, "{}", "[]", "not json", '{"format": "alignserve-store", "version": 2}']
)
def test_what_is_no_store_is_not_opened(store: Store, tmp_path: Path, content: str | None) -> None:
    """A missing, foreign, damaged or later store.json."""
    store.close()
    file = tmp_path / "store/store.json"
    file.unlink() if content is None else file.write_text(content)

    with pytest.raises(StoreError, match="store"):
        open_store(tmp_path / "store")


def test_a_store_is_not_created_over_other_files(new_store: Callable[..., Store], tmp_path: Path) -> None:
    """Neither over a store nor over anything else."""
    new_store("store").close()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_bytes(b"")

    with pytest.raises(StoreExistsError, match="already"):
        new_store("store")
    with pytest.raises(StoreExistsError, match=r"cat\.jpg"):
        new_store("photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    with pytest.raises(NoStoreError, match="alignserve index"):
        open_store(tmp_path / "absent")


_USES: dict[str, Callable[[Store], object]] = {
    "count": lambda store: store.count(),
    "search": lambda store: store.search(vector(1), 1),
    "filtered search": lambda store: store.search(vector(1), 1, {"n": 1}),
    "get": lambda store: store.get(["a"]),
    "entries": lambda store: list(store.entries()),
    "values": lambda store: list(store.values(["n"])),
    "columns": lambda store: store.columns(),
    "put": lambda store: store.put([entry("a")]),
    "put with a new column": lambda store: store.put([entry("z", 1, {"m": 1})]),
    "delete": lambda store: store.delete(["a"]),
    "optimize": lambda store: store.optimize(),
}


@pytest.mark.parametrize("use", _USES)
@pytest.mark.parametrize("part", ["data", "_versions"])
def test_a_store_with_damaged_files_says_so_in_one_line(
    store: Store, tmp_path: Path, part: str, use: str
) -> None:
    """Whatever needs the cut files raises `StoreError`, without the engine's places in its source."""
    store.put([entry("a", 1, {"n": 1})])
    for file in (tmp_path / "store/vectors.lance" / part).iterdir():
        os.truncate(file, 5)
    needs_no_rows = part == "data" and use in ("count", "columns", "optimize")

    with nullcontext() if needs_no_rows else pytest.raises(StoreError) as caught:
        _USES[use](store)

    if caught is not None:
        assert str(caught.value).startswith(f"the store {tmp_path}/store cannot be read or written: ")
        assert not re.search(r"\.rs\b|\n", str(caught.value))


@pytest.mark.parametrize("use", ["open", "create"])
def test_a_place_that_cannot_be_read_is_not_told_as_empty(tmp_path: Path, use: str) -> None:
    """Else a run that cannot reach its store would begin a new one over it."""
    url = f"file://{tmp_path}/store"
    options: dict[str, Any] = {"fingerprint": "f", "model": "m", "embedding_dimension": 8}
    create_store(url, **options).close()
    for file in (tmp_path / "store/vectors.lance/_versions").iterdir():
        os.truncate(file, 5)

    with pytest.raises(StoreError, match="cannot be read or written") as caught:
        open_store(url) if use == "open" else create_store(url, **options)

    assert not isinstance(caught.value, (NoStoreError, StoreExistsError))
    with pytest.raises(StoreError, match="No object store provider found for scheme: 'unknown'"):
        open_store("unknown://bucket/store")


def test_an_unfinished_creation_is_done_again(
    store: Store, new_store: Callable[..., Store], tmp_path: Path
) -> None:
    """A process that was killed before it wrote store.json does not block the next one."""
    store.put([entry("a")])
    store.close()
    (tmp_path / "store/store.json").unlink()

    assert new_store("store").count() == 0


_WRITER = """
import sys
import numpy as np
from alignserve.search import Entry, open_store
store = open_store(sys.argv[1], for_writing=True)
rng = np.random.default_rng(0)
print("ready", flush=True)
for round in range(10_000):
    vectors = rng.random((100, 8), np.float32)
    store.put(Entry(f"{round}-{n}", vector, {"round": round}) for n, vector in enumerate(vectors))
    print(round, flush=True)
"""


def test_a_killed_writer_leaves_a_store_that_opens(store: Store, tmp_path: Path) -> None:
    """Every put that returned is there, and no half of one; readers in other processes see the same."""
    store.close()
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path / "store")], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    done = [next(writer.stdout).strip() for _ in range(4)][-1]
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()

    reopened = open_store(tmp_path / "store", for_writing=True)
    rounds = [columns["round"] for _, columns in reopened.values(["round"])]

    assert set(rounds) >= set(range(int(done) + 1))
    assert all(rounds.count(round_) == 100 for round_ in set(rounds))
    reopened.put([entry("after")])
    reopened.optimize()
    assert reopened.count() == len(rounds) + 1
    reopened.close()


def test_an_old_version_stays_for_a_scan_that_has_begun(store: Store) -> None:
    """`entries` has the rows of its beginning."""
    store.put(entry(f"{number}", number) for number in range(10))
    rows = store.entries()
    first = next(rows)
    store.delete([f"{number}" for number in range(10)])

    assert {first.key, *(one.key for one in rows)} == {f"{number}" for number in range(10)}


def test_a_store_of_another_process_is_not_created_twice(tmp_path: Path) -> None:
    """A path may be a string or a path."""
    created = create_store(str(tmp_path / "store"), fingerprint="f", model="m", embedding_dimension=8)
    created.close()

    assert open_store(tmp_path / "store").fingerprint == "f"


def test_a_store_has_a_url_too(tmp_path: Path) -> None:
    """Object stores have no lock and no store.json: the table says whose embeddings it has."""
    url = (tmp_path / "store").as_uri()
    with pytest.raises(NoStoreError):
        open_store(url)
    created = create_store(url, fingerprint="f", model="m", embedding_dimension=DIMENSION)
    created.put([entry("a", 1, {"n": 1})])
    created.close()

    reopened = open_store(url, fingerprint="f", for_writing=True)
    reopened.put([entry("b", 2)])

    assert keys(reopened) == {"a", "b"}
    assert (reopened.model, reopened.embedding_dimension) == ("m", DIMENSION)
    with pytest.raises(OtherModelError):
        open_store(url, fingerprint="other")
    with pytest.raises(StoreExistsError):
        create_store(url, fingerprint="f", model="m", embedding_dimension=DIMENSION)


def test_numbers_compare_exactly_whatever_their_size(store: Store) -> None:
    """As exact search compares them: no rounding to floats, and no error at the ends of 64 bits."""
    whole = [0, -1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), None]
    floats = [0.0, 0.1, float(2**53), 1e308, -1e308, math.inf, None]
    rows = [
        entry(str(number), number, {"whole": one, "float": other})
        for number, (one, other) in enumerate(zip(whole, floats, strict=True))
    ]
    exact = ExactStore(fingerprint="fake-8", embedding_dimension=DIMENSION)
    store.put(rows)
    exact.put(rows)
    limits = [*whole[:-1], *floats[:-2], 0.5, 2**63, -(2**63) - 1, 2.0**63, 1e19, 10**400, -(10**400)]

    for column in ("whole", "float"):
        for limit in limits:
            for wanted in (limit, {"min": limit}, {"max": limit}, {"in": [limit, None]}):
                found, right = (
                    {hit.key for hit in one.search(vector(0), 100, {column: wanted})}
                    for one in (store, exact)
                )
                assert found == right, wanted
