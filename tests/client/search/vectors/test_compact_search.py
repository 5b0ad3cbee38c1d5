"""Search of compact vectors: queries go the way that the vectors went, in stores and in folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lancedb")

from alignserve.search import Entry, Store, StoreError, create_store, open_store
from alignserve.search.compact import FILE, Compaction
from alignserve.search.recall import RecallMeter
from alignserve.search.rotation import fit_itq, fit_pca
from alignserve.testing import FakeServer

DIM, COUNT = 32, 120
FORMS = {
    "halves": ("--dtype", "float16"),
    "pca": ("--dtype", "float16", "--dimensions", 16),
    "floats": ("--dtype", "float32", "--rotation", "pca"),
    "bytes": ("--dtype", "int8"),
    "short bytes": ("--dtype", "int8", "--dimensions", 16),
    "bits": ("--dtype", "binary"),
    "few bits": ("--dtype", "binary", "--dimensions", 24),
    "signs": ("--dtype", "binary", "--rotation", "none"),
}
ROTATED = [name for name in FORMS if name not in ("halves", "bytes", "signs")]


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer(embedding_dimension=DIM) as fake:
        yield fake


@pytest.fixture
def vectors(write_folder: Any, server: FakeServer, tmp_path: Path) -> Path:
    """Photos whose vectors are the server's of the texts that are their keys."""
    names = [f"text {number}" for number in range(COUNT)]
    photos = [tmp_path / f"{number}.jpg" for number in range(COUNT)]
    for name, photo in zip(names, photos, strict=True):
        photo.write_bytes(photo.name.encode())
        server.set_embedding(photo.name.encode(), server.embedding_of(name))
    return write_folder(
        image=[server.embedding_of(name) for name in names],
        keys=names,
        columns={"number": list(range(COUNT)), "path": list(map(str, photos))},
        fingerprint=f"fake-{DIM}",
        parts=1,
    )


@pytest.fixture
def places(run: Any, vectors: Path, tmp_path: Path) -> Callable[[str], dict[str, Path]]:
    """Returns the places of compact vectors of a form: a store, their folder, and a part of it."""

    def make(form: str) -> dict[str, Path]:
        folder = tmp_path / "small"
        code, _, err = run("compact-vectors", vectors, "--to", folder, *FORMS[form])
        assert code == 0, err
        code, out, err = run("index", folder, "--to", tmp_path / "store")
        assert (code, f"{COUNT} added" in out) == (0, True), err
        (part,) = folder.glob("*.parquet")
        return {"store": tmp_path / "store", "folder": folder, "part": part}

    return make


@pytest.fixture
def search(run: Any, server: FakeServer) -> Any:
    """Searches; returns the hits."""

    def call(place: Path, *arguments: Any) -> list[dict[str, Any]]:
        code, out, err = run("--server", server.target, "search", place, *arguments, "--json")
        assert code == 0, err
        return json.loads(out)["hits"]

    return call


@pytest.mark.parametrize("form", FORMS)
def test_a_text_finds_its_row(form: str, places: Any, search: Any, server: FakeServer) -> None:
    """In each form, in a store, a folder and a part; similarities are cosines in the compact space."""
    compaction = None
    for place in places(form).values():
        hits = search(place, "--text", "text 7", "--top-k", 5)

        compaction = compaction or Compaction.load(place.parent / "small")
        query = compaction.rotate(server.embedding_of("text 7")[None])
        query /= np.linalg.norm(query)
        for hit in hits:
            stored = compaction.decode(compaction.encode(server.embedding_of(hit["key"])[None]))
            assert hit["similarity"] == pytest.approx(float(query[0] @ stored[0]), abs=2e-3)
        assert hits[0]["key"] == "text 7"
        assert hits[0]["columns"]["number"] == 7
        assert len(hits) == 5


@pytest.mark.parametrize("form", ["pca", "bytes", "few bits"])
def test_stores_and_folders_agree(form: str, places: Any, search: Any) -> None:
    """Also with a filter, a row, words to move away from, and more rows wanted than there are."""
    found = places(form)
    for query in (
        ("--text", "text 3", "--where-min", "number=3", "--where-max", "number=60"),
        ("--like", "text 3", "--text", "text 4", "--weight", 0.5, "--minus", "text 5"),
        ("--text", "text 3", "--top-k", 5000),
        ("--text", "text 3", "--min-similarity", 0.2),
    ):
        one, other = (search(found[place], *query) for place in ("store", "folder"))

        assert len(one) == len(other) > 0
        assert {hit["key"] for hit in one} == {hit["key"] for hit in other}
        assert [hit["similarity"] for hit in one] == pytest.approx(
            [hit["similarity"] for hit in other], abs=2e-3
        )


@pytest.mark.parametrize("form", ["pca", "few bits"])
def test_pictures_and_contact_sheets_work(
    form: str, places: Any, run: Any, server: FakeServer, tmp_path: Path
) -> None:
    """An image is rotated as a text is; the sheet and the table show what the JSON has."""
    picture = tmp_path / "bag.jpg"
    picture.write_bytes(b"a bag")
    server.set_embedding(b"a bag", server.embedding_of("text 9"))
    place = places(form)["store"]

    code, out, err = run(
        *("--server", server.target, "search", place, "--image", picture, "--text", "text 9"),
        *("--html", tmp_path / "found.html", "--top-k", 3),
    )

    assert code == 0, err
    assert out.splitlines()[2].split()[2:4] == ["text", "9"]
    assert "text 9" in (tmp_path / "found.html").read_text()


def test_files_of_queries_are_answered(places: Any, run: Any, server: FakeServer, tmp_path: Path) -> None:
    """Each query goes the same way."""
    lines = tmp_path / "queries.jsonl"
    lines.write_text('{"text": "text 1"}\n{"like": "text 2", "top_k": 1}\n{"text": "text 3"}\n')

    code, out, _ = run(
        *("--server", server.target, "search", places("pca")["store"]),
        *("--queries-file", lines, "--top-k", 1),
    )

    best = [json.loads(line)["hits"][0]["key"] for line in out.splitlines()]
    assert code == 0
    assert (best[0], best[2]) == ("text 1", "text 3")
    assert best[1] != "text 2"


@pytest.mark.parametrize("place", ["store", "folder"])
@pytest.mark.parametrize("form", ["pca", "bits", "bytes"])
def test_a_server_with_another_model_is_refused(form: str, place: str, places: Any, run: Any) -> None:
    """The message has the fingerprints of the models, without the rotation."""
    with FakeServer(embedding_dimension=16) as other:
        code, out, err = run("--server", other.target, "search", places(form)[place], "--text", "a")

    assert (code, out) == (4, "")
    assert f"'a-model' with fingerprint fake-{DIM}, and the server has" in err
    assert "fake-16" in err


@pytest.mark.parametrize(
    ("dtype", "is_itq", "least"), [("float16", False, 1.0), ("int8", False, 0.98), ("binary", True, 0.98)]
)
def test_a_store_finds_what_exact_search_of_the_same_vectors_finds(
    dtype: Any, is_itq: bool, least: float, tmp_path: Path, rng: np.random.Generator
) -> None:
    """2,000 rows about 50 centres, and queries near them: recall@10 among the compact vectors."""
    centres = rng.standard_normal((50, 64)).astype(np.float32)
    near = lambda count: centres[rng.integers(50, size=count)] + rng.standard_normal((count, 64)) * 0.5  # noqa: E731
    rows, queries = (np.asarray(near(count), np.float32) for count in (2000, 30))
    rotation = fit_itq({"image": rows}, 48) if is_itq else fit_pca({"image": rows}, 48)
    compaction = Compaction(dtype, rotation, "m")
    store = create_store(
        tmp_path / "s",
        fingerprint=compaction.fingerprint,
        model="m",
        embedding_dimension=48,
        compaction=compaction,
    )
    stored = compaction.decode(compaction.encode(rows))
    store.put(Entry(str(number), vector, {}) for number, vector in enumerate(stored))

    rotated = compaction.rotate(queries)
    found = np.full((30, 2000), -np.inf, np.float32)
    for row, query in enumerate(rotated):
        for hit in store.search(query, 10):
            found[row, int(hit.key)] = hit.similarity
    store.close()

    meter = RecallMeter(30)
    meter.add(rotated @ stored.T, found, np.arange(2000))
    assert meter.result().at_10 >= least


@pytest.mark.parametrize(("form", "kind"), [("pca", "halffloat"), ("bytes", "halffloat"), ("bits", "uint8")])
def test_stores_stay_small(form: str, kind: str, places: Any) -> None:
    """Two bytes for each number, and a bit for each sign."""
    place = places(form)["store"]
    import lancedb

    type_ = lancedb.connect(place).open_table("vectors").schema.field("embedding").type

    assert str(type_.value_type) == kind
    assert type_.list_size == {"pca": 16, "bytes": 32, "bits": 4}[form]


@pytest.mark.parametrize("form", ["pca", "bytes", "few bits"])
def test_what_was_put_comes_back(form: str, places: Any, server: FakeServer) -> None:
    """In length 1, and indexing the folder again changes nothing."""
    found = places(form)
    compaction = Compaction.load(found["folder"])
    store = open_store(found["store"])

    (entry,) = store.get(["text 5"])

    wanted = compaction.decode(compaction.encode(server.embedding_of("text 5")[None]))[0]
    assert np.linalg.norm(entry.embedding) == pytest.approx(1, abs=1e-5)
    assert entry.embedding == pytest.approx(wanted, abs=1e-3)
    assert store.compaction is not None
    assert store.compaction.fingerprint == store.fingerprint == compaction.fingerprint


def test_indexing_again_changes_nothing(places: Any, run: Any) -> None:
    """The source of a compact store is followed as any other."""
    found = places("few bits")

    code, out, _ = run("index", found["folder"], "--to", found["store"])

    assert code == 0
    assert f"0 added + 0 changed + {COUNT} unchanged" in out


@pytest.mark.parametrize("form", ROTATED)
def test_more_rows_come_in_as_the_model_makes_them(
    form: str, places: Any, run: Any, search: Any, server: FakeServer, write_folder: Any, tmp_path: Path
) -> None:
    """Photos that the server embeds, and vectors that were not compacted, are rotated on their way."""
    place = places(form)["store"]
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "new.jpg").write_bytes(b"new")
    server.set_embedding(b"new", server.embedding_of("a new one"))
    more = write_folder(
        "more", image=[server.embedding_of("more")], keys=["more"], parts=1, fingerprint="fake-32"
    )

    embedded, *_ = run("--server", server.target, "index", photos, "--to", place)
    original, *_ = run("index", *more.glob("*.parquet"), "--to", place)

    assert (embedded, original) == (0, 0)
    assert search(place, "--text", "a new one", "--top-k", 1)[0]["key"] == "new.jpg"
    assert search(place, "--text", "more", "--top-k", 1)[0]["key"] == "more"


def test_bits_do_not_become_numbers(places: Any, run: Any, vectors: Path, tmp_path: Path) -> None:
    """A store of numbers refuses them; both forms into one store make a store of bits."""
    bits = places("signs")["folder"]
    (originals,) = vectors.glob("*.parquet")
    run("index", originals, "--to", tmp_path / "floats")

    refused, _, err = run("index", bits, "--to", tmp_path / "floats")
    code, *_ = run("index", originals, bits, "--to", tmp_path / "both")

    assert refused == 4
    assert "index the bits into a new store" in err
    assert code == 1  # the same keys twice
    store = open_store(tmp_path / "both")
    assert store.compaction is not None
    assert store.compaction.dtype == "binary"


@pytest.mark.parametrize("form", ["pca", "bits", "bytes"])
def test_a_compaction_that_is_missing_is_named(form: str, places: Any, run: Any, tmp_path: Path) -> None:
    """Nothing is indexed or searched; the message says which file it is."""
    folder = places(form)["folder"]
    (folder / FILE).unlink()

    indexed, _, index_error = run("index", folder, "--to", tmp_path / "new")
    searched, _, search_error = run("search", folder, "--like", "text 1")

    assert (indexed, searched) == (4, 4)
    assert f"{folder / FILE} is missing" in index_error
    assert f"{folder / FILE} is missing" in search_error
    assert not (tmp_path / "new").exists()


def test_the_compaction_of_other_vectors_is_refused(
    places: Any, run: Any, clouds: Any, tmp_path: Path
) -> None:
    """By its fingerprint, which has the digest of the rotation."""
    folder = places("pca")["folder"]
    (folder / FILE).write_bytes(Compaction("float16", fit_pca(clouds, 16), "fake-32").to_bytes())

    code, _, err = run("index", folder, "--to", tmp_path / "new")

    assert code == 4
    assert "belongs to other vectors" in err


def test_a_store_without_its_compaction_is_damaged(places: Any, run: Any) -> None:
    """Queries of it would find anything."""
    place = places("pca")["store"]
    shutil.rmtree(place / "compaction.lance")

    with pytest.raises(StoreError, match="no query can be made compact"):
        open_store(place)


def test_a_store_at_a_url_has_its_compaction(tmp_path: Path, clouds: Any) -> None:
    """Also where there are no folders."""
    compaction = Compaction("binary", fit_itq(clouds, 16), "m")
    url = f"file://{tmp_path}/at-url"
    created = create_store(
        url, fingerprint=compaction.fingerprint, model="m", embedding_dimension=16, compaction=compaction
    )
    created.put([Entry("a", compaction.rotate(clouds["image"][:1])[0], {})])
    created.close()

    store: Store = open_store(url)

    assert store.compaction is not None
    assert store.compaction.digest() == compaction.digest()
    assert store.search(compaction.rotate(clouds["image"][:1])[0], 1)[0].key == "a"


@pytest.mark.parametrize("form", ["pca", "bytes", "few bits"])
def test_compact_stores_and_folders_are_verified(
    form: str, places: Any, run: Any, server: FakeServer
) -> None:
    """Photos are embedded again and go the same way; one that changed shows."""
    found = places(form)
    for place in found.values():
        code, out, err = run("--server", server.target, "verify-vectors", place, "--json")
        report = json.loads(out)
        assert (code, report["verdict"], report["drift"]["image"]["compared"]) == (0, "same", COUNT), err
        assert report["fingerprints"]["equal"]
    server.set_embedding(b"8.jpg", server.embedding_of("something else"))

    for place in found.values():
        code, out, _ = run("--server", server.target, "verify-vectors", place, "--json")
        assert (code, json.loads(out)["drifted_keys"]) == (1, ["text 8"])
