"""The command `alignserve search`: what it prints and writes, and how it exits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from alignserve.cli import main
from alignserve.search import Entry, create_store
from alignserve.testing import FakeServer

DIMENSION = 8
PNG = b"\x89PNG\r\n\x1a\n not a picture"
KEYS = ["cat.jpg", "dogs/dog.jpg", 'a "quoted" \\ key\n<script>', "cup.png"]


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeServer]:
    with FakeServer(embedding_dimension=DIMENSION) as server:
        yield server


@pytest.fixture(scope="module")
def store(fake: FakeServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rows; each has the embedding of the text that is its key, and one a picture."""
    folder = tmp_path_factory.mktemp("search")
    photo = folder / "cat.jpg"
    shutil.copy(Path(__file__).parents[2] / "data/photos/cat.jpg", photo)
    made = create_store(
        folder / "store", fingerprint=f"fake-{DIMENSION}", model="fake", embedding_dimension=DIMENSION
    )
    made.put(
        Entry(
            key,
            fake.embedding_of(key),
            {"license": license_, "width": width, "path": str(photo) if not row else None},
        )
        for row, (key, license_, width) in enumerate(
            zip(KEYS, ["CC0", 'it\'s "ours"\\', "CC0", "007"], [640, 320, None, 7], strict=True)
        )
    )
    made.close()
    return folder / "store"


@pytest.fixture
def run(fake: FakeServer, store: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command on the store; returns its exit code, stdout and stderr."""

    def call(*arguments: object, at: Path = store) -> tuple[int, str, str]:
        code = main(["--server", fake.target, "search", str(at), *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    fake.reset()
    return call


def keys(out: str) -> list[str]:
    return [hit["key"] for hit in json.loads(out)["hits"]]


def test_a_text_finds_its_row(run: Any) -> None:
    """A line for each row, best first."""
    code, out, err = run("--text", "cup.png", "--top-k", 2)

    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].split()[:3] == ["rank", "similarity", "key"]
    assert lines[2].split()[:3] == ["1", "1.0000", "cup.png"]
    assert len(lines) == 4


def test_json_has_the_model_and_all_columns(run: Any) -> None:
    """Keys are exact, whatever is in them."""
    code, out, _ = run("--text", KEYS[2], "--json", "--top-k", 1)

    assert code == 0
    data = json.loads(out)
    assert data["model"] == "fake-8"
    (hit,) = data["hits"]
    assert hit["key"] == KEYS[2]
    assert hit["similarity"] == pytest.approx(1, abs=1e-5)
    assert hit["columns"]["license"] == "CC0"


def test_terms_are_composed_by_the_server(fake: FakeServer, run: Any, tmp_path: Path) -> None:
    """In one call, with the signs of --minus and the weights."""
    image = tmp_path / "bag.jpg"
    image.write_bytes(b"a bag")
    run(
        "--image",
        image,
        "--text",
        "red",
        "--weight",
        0.5,
        "--minus",
        "leather",
        "--minus",
        image,
        "--weight",
        2,
    )

    (call,) = [
        call
        for call in fake.received
        if call.method == "StreamInfer" and call.request.HasField("embed_query")
    ]
    terms = [
        (term.image.content or term.text, term.weight if term.HasField("weight") else 1.0)
        for term in call.request.embed_query.queries[0].terms
    ]
    assert terms == [(b"a bag", 1.0), ("red", 0.5), ("leather", -1.0), (b"a bag", -2.0)]


def test_a_row_of_the_store_needs_no_server(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing listens at the address."""
    code = main(
        ["--server", "127.0.0.1:1", "search", str(store), "--like", "cat.jpg", "--json", "--top-k", "1"]
    )

    assert code == 0
    assert len(keys(capsys.readouterr().out)) == 1


def test_rows_and_texts_are_added(fake: FakeServer, run: Any) -> None:
    """The store's row weighs as much as a text."""
    _, out, _ = run("--like", "cat.jpg", "--text", "cup.png", "--weight", -0.5, "--json")

    wanted = fake.embedding_of("cat.jpg") - 0.5 * fake.embedding_of("cup.png")
    similarities = {hit["key"]: hit["similarity"] for hit in json.loads(out)["hits"]}
    assert similarities["dogs/dog.jpg"] == pytest.approx(
        float(fake.embedding_of("dogs/dog.jpg") @ wanted / np.linalg.norm(wanted)), abs=1e-4
    )


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["--where", "license=CC0"], {KEYS[0], KEYS[2]}),
        (["--where", 'license=it\'s "ours"\\'], {KEYS[1]}),
        (["--where", "license=007"], {KEYS[3]}),
        (["--where", "license=7"], set()),
        (["--where", "license=CC0", "--where", "license=007"], {KEYS[0], KEYS[2], KEYS[3]}),
        (["--where", "width=007"], {KEYS[3]}),
        (["--where-min", "width=320"], {KEYS[0], KEYS[1]}),
        (["--where-min", "width=7", "--where-max", "width=320.5"], {KEYS[1], KEYS[3]}),
        (["--where-contains", 'license="ours"'], {KEYS[1]}),
        (["--where-json", '{"width": null}'], {KEYS[2]}),
        (["--where-json", '{"width": {"in": [7, 640]}}', "--where", "license=CC0"], {KEYS[0]}),
    ],
)
def test_filters_select_rows(run: Any, conditions: list[str], expected: set[str]) -> None:
    """By values of the column's type, as they are written."""
    code, out, _ = run("--text", "x", "--json", *conditions)

    assert code == 0
    assert set(keys(out)) == expected


def test_finding_nothing_is_explained(run: Any) -> None:
    """On stderr; the answer itself is empty."""
    code, out, err = run("--text", "x", "--where", "license=none")
    assert (code, out, err) == (0, "", "alignserve: no row meets the filter\n")

    code, out, err = run("--text", "x", "--min-similarity", 0.9999)
    assert (code, out) == (0, "")
    assert "similarity of at least 0.9999" in err


def test_more_rows_than_there_are_gives_all(run: Any) -> None:
    """Also above the limits of engines."""
    assert len(keys(run("--text", "x", "--json", "--top-k", 5000)[1])) == 4


def test_an_empty_store_says_so(run: Any, tmp_path: Path) -> None:
    """With what fills it."""
    create_store(tmp_path / "empty", fingerprint="fake-8", model="fake", embedding_dimension=8).close()

    code, out, err = run("--text", "x", at=tmp_path / "empty")

    assert (code, out) == (0, "")
    assert "the store is empty; alignserve index fills it" in err


def test_vectors_without_a_store_are_searched_too(fake: FakeServer, run: Any, tmp_path: Path) -> None:
    """All of them, exactly: the output of embed-dataset needs no index to be looked at."""
    texts = ["a", "b", "c", "d"]
    rows = [fake.embedding_of(text).tolist() for text in texts[:-1]]
    table = pa.table(
        {
            "key": texts,
            "image_embedding": pa.array([*rows, None], pa.list_(pa.float32(), DIMENSION)),
            "license": ["CC0", "MIT", "CC0", "CC0"],
        }
    ).replace_schema_metadata({"alignserve.fingerprint": "fake-8", "alignserve.model": "fake"})
    pq.write_table(table, tmp_path / "part-00000-00000.parquet")
    (tmp_path / "manifest.json").write_text(
        json.dumps({"format": "alignserve-dataset", "version": 1, "job": "embed", "state": "complete"})
    )

    code, out, err = run("--text", "b", "--where", "license=CC0", "--json", at=tmp_path)

    assert (code, set(keys(out))) == (0, {"a", "c"})
    assert "without a vector, which are not searched: 1" in err
    assert keys(run("--text", "b", "--json", at=tmp_path / "part-00000-00000.parquet")[1])[0] == "b"


def test_vectors_of_an_unknown_model_are_refused(run: Any, tmp_path: Path) -> None:
    """They may be of any."""
    vectors = pa.array([[1.0] * DIMENSION], pa.list_(pa.float32(), DIMENSION))
    pq.write_table(pa.table({"key": ["a"], "image_embedding": vectors}), tmp_path / "v.parquet")

    code, out, err = run("--text", "b", at=tmp_path / "v.parquet")

    assert (code, out) == (4, "")
    assert "--fingerprint" in err


def test_a_store_of_another_model_is_refused(run: Any, tmp_path: Path) -> None:
    """Before the query is embedded."""
    create_store(tmp_path / "other", fingerprint="f00", model="theirs", embedding_dimension=8).close()

    code, out, err = run("--text", "x", at=tmp_path / "other")

    assert (code, out) == (4, "")
    assert "model 'theirs' with fingerprint f00" in err
    assert "index again" in err


def test_what_is_no_store_is_refused(run: Any, tmp_path: Path) -> None:
    """A folder of something else, a file, and nothing at all."""
    (tmp_path / "file").write_text("x")
    for place in (tmp_path, tmp_path / "file", tmp_path / "nothing"):
        code, out, err = run("--text", "x", at=place)

        assert (code, out) == (4, ""), place
        assert str(place) in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "search needs --text, --image or --like"),
        (["--text", "x", "--where", "license"], "'license' is not COLUMN=VALUE"),
        (["--text", "x", "--top-k", "0"], "above 0"),
        (["--text", "x", "--min-similarity", "2"], "from -1 to 1"),
        (["--weight", "2", "--text", "x"], "the --image or --text before it"),
        (["--minus", "x", "--weight", "-2"], "after --minus"),
        (["--minus", "missing.jpg"], "no image file 'missing.jpg'"),
        (["--text", "x", "--queries-file", "q"], "leave out --text"),
        (["--queries-file", "q", "--html", "h"], "shows one query"),
        (["--text", "x", "--page", "http://a"], "are for --html"),
        (["--text", "x", "--html", "h", "--page", "javascript:x"], "is not a URL"),
        (["--image", "-", "--queries-file", "-"], "leave out|only once"),
    ],
)
def test_a_command_line_that_contradicts_itself_is_refused(
    run: Any, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its usage, before anything is opened."""
    with pytest.raises(SystemExit) as caught:
        run(*arguments)

    assert caught.value.code == 2
    assert_matches(message, capsys.readouterr().err)


def assert_matches(pattern: str, text: str) -> None:
    assert any(part in text for part in pattern.split("|")), text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--where", "licence=CC0"], "did you mean license?"),
        (["--where", "width=wide"], "'wide' is not one"),
        (["--where-json", "{"], "--where-json is not JSON"),
        (["--like", "missing"], "no row with the key 'missing'"),
        (["--text", "x", "--weight", "0"], "weight 0"),
        (["--image", "missing.jpg"], "missing.jpg"),
    ],
)
def test_what_cannot_be_answered_is_refused(run: Any, arguments: list[str], message: str) -> None:
    """In one line, with exit code 4."""
    terms = [] if {"--like", "--image", "--text"} & set(arguments) else ["--text", "x"]

    code, out, err = run(*terms, *arguments)

    assert (code, out) == (4, "")
    assert message in err
    assert err.count("\n") == 1


def test_queries_of_a_file_are_answered_in_order(run: Any, tmp_path: Path) -> None:
    """A line each, also for those that fail."""
    file = tmp_path / "queries.jsonl"
    file.write_text(
        '{"id": "first", "text": "cup.png", "top_k": 1}\n'
        "not JSON\n"
        '{"like": "cat.jpg", "where": {"license": "007"}}\n'
        '{"id": "\\ud800", "text": "x", "where": {"colour": 1}}\n'
        '{"text": "x", "where": {"license": "\\ud800"}}\n'
        '{"like": "\\ud800"}\n'
        '{"text": "\\ud800"}\n'
        '{"text": "cup.png"}\n'
    )

    code, out, err = run("--queries-file", file)

    first, second, third, fourth, *halves, last = map(json.loads, out.splitlines())
    assert code == 1
    assert "5 queries failed" in err
    assert (first["id"], [hit["key"] for hit in first["hits"]]) == ("first", ["cup.png"])
    assert (second["id"], second["error"]["reason"]) == (2, "QUERY_INVALID")
    assert (third["id"], [hit["key"] for hit in third["hits"]]) == (3, ["cup.png"])
    assert (fourth["id"], fourth["error"]["reason"]) == ("\ud800", "FILTER_INVALID")
    assert [half["error"]["code"] for half in halves] == ["INVALID_ARGUMENT"] * 3
    assert last["hits"][0]["key"] == "cup.png"


def test_a_contact_sheet_is_written(run: Any, tmp_path: Path) -> None:
    """With the query's picture and those of the rows, in one file."""
    photo = Path(__file__).parents[2] / "data/photos/coffee.jpg"
    sheet = tmp_path / "found.html"

    code, out, err = run(
        "--image", photo, "--text", "red & <b>", "--html", sheet, "--page", "http://127.0.0.1:8080/"
    )

    content = sheet.read_text()
    assert code == 0
    assert "cat.jpg" in out
    assert f"wrote {sheet}" in err
    assert content.count('src="data:image/jpeg;base64,') == 2
    assert "red &amp; &lt;b&gt;" in content
    assert "<script" not in content
    assert 'href="http://127.0.0.1:8080/#search=red+%26+%3Cb%3E"' in content


def test_a_sheet_that_exists_stays_if_the_search_fails(run: Any, tmp_path: Path) -> None:
    """It is emptied only once there is an answer."""
    sheet = tmp_path / "found.html"
    sheet.write_text("earlier")

    assert run("--like", "missing", "--html", sheet)[0] == 4
    assert sheet.read_text() == "earlier"


@pytest.fixture
def odd_store(tmp_path: Path) -> Path:
    """Rows with a column without a name, and floats that JSON lacks."""
    made = create_store(tmp_path / "odd", fingerprint="fake-8", model="fake", embedding_dimension=8)
    vectors = np.eye(2, 8, dtype=np.float32)
    made.put(
        [Entry("a", vectors[0], {"": "u", "f": np.inf}), Entry("b", vectors[1], {"": "w=1", "f": -np.inf})]
    )
    made.close()
    return tmp_path / "odd"


def test_a_column_without_a_name_can_be_filtered(run: Any, odd_store: Path) -> None:
    """Such as the index that pandas writes; the value may have an equals sign too."""
    _, out, _ = run("--text", "x", "--json", "--where", "=w=1", at=odd_store)

    assert keys(out) == ["b"]


def test_infinity_does_not_break_json(run: Any, odd_store: Path) -> None:
    """Readers other than Python's refuse `Infinity` as a number."""
    _, out, _ = run("--text", "x", "--json", at=odd_store)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    hits = json.loads(out, parse_constant=refuse)["hits"]
    assert {hit["columns"]["f"] for hit in hits} == {"inf", "-inf"}


@pytest.mark.parametrize("part", ["vectors.lance/data", "vectors.lance/_versions", "vectors.lance"])
def test_a_damaged_store_is_named(run: Any, odd_store: Path, part: str) -> None:
    """Files that are cut, or gone; the exit code is 4, for indexing too."""
    if part == "vectors.lance":
        shutil.rmtree(odd_store / part)
    else:
        for file in (odd_store / part).iterdir():
            file.write_bytes(file.read_bytes()[:9])

    code, out, err = run("--like", "a", at=odd_store)

    assert (code, out) == (4, "")
    assert f"the store {odd_store} " in err
    assert "damaged" in err
