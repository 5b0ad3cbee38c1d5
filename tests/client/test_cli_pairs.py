"""The commands `compare` and `embed-query`, and the data types of `embed` and `stream`."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from alignserve.cli import main
from alignserve.testing import FakeServer


@pytest.fixture
def run(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command; returns its exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["--server", server.target, *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"{name}.jpg" for name in "ab"]
    for file in files:
        file.write_bytes(file.name.encode())
    return files


def similarity(server: FakeServer, image: Path, text: str) -> float:
    return float(server.embedding_of(image.name.encode()) @ server.embedding_of(text))


def test_compare_prints_a_table(server: FakeServer, run: Any, photos: list[Path]) -> None:
    """A row for each pair, in the order given."""
    code, out, _ = run("compare", *photos, "--text", "a cat", "a dog")

    header, _, *rows = out.splitlines()
    assert code == 0
    assert header.split() == ["image", "text", "similarity", "logit"]
    assert [row.split()[-2] for row in rows] == [
        f"{similarity(server, image, text):.4f}"
        for image, text in zip(photos, ["a cat", "a dog"], strict=True)
    ]


@pytest.mark.parametrize(("images", "texts"), [(1, 2), (2, 1)])
def test_one_image_or_one_text_is_compared_with_all(
    run: Any, photos: list[Path], images: int, texts: int
) -> None:
    """The shorter side is repeated."""
    _, out, _ = run("compare", *photos[:images], "--text", *["x", "y"][:texts], "--json")

    lines = json.loads(out)["comparisons"]
    assert [(line["input"], line["text"]) for line in lines] == [
        (str(photos[0]), "x"),
        (str(photos[images - 1]), ["x", "y"][texts - 1]),
    ]
    assert all(set(line) == {"input", "text", "similarity", "logit"} for line in lines)


def test_an_image_on_standard_input_is_read_once(
    server: FakeServer, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be compared with several texts."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"piped")))

    code, _, _ = run("compare", "-", "--text", "x", "y")

    sent = [call.request.compare for call in server.received if call.method == "StreamInfer"]
    assert code == 0
    assert [request.pairs[0].image.content for request in sent if request.pairs] == [b"piped"] * 2


def test_pairs_come_from_a_file_and_go_to_lines(
    server: FakeServer, run: Any, photos: list[Path], tmp_path: Path
) -> None:
    """A filter for captions: a tab-separated file in, JSON Lines out; a failed pair keeps its line."""
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text(f"{photos[0]}\ta cat\nnowhere.jpg\ta dog\n\n{photos[1]}\ttabs\tstay\n")

    code, _, err = run("compare", "--pairs-file", pairs, "--output", tmp_path / "out.jsonl")

    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (code, "1 failed" in err) == (1, True)
    assert [line["text"] for line in lines] == ["a cat", "a dog", "tabs\tstay"]
    assert lines[0]["similarity"] == pytest.approx(similarity(server, photos[0], "a cat"), abs=1e-6)
    assert lines[1]["error"]["reason"] == "INPUT_UNREADABLE"


def test_an_interrupted_comparison_goes_on(
    server: FakeServer, run: Any, photos: list[Path], tmp_path: Path
) -> None:
    """`--resume` knows pairs by image and text."""
    pairs, out = tmp_path / "pairs.tsv", tmp_path / "out.jsonl"
    pairs.write_text("".join(f"{photo}\t{text}\n" for photo in photos for text in ("x", "y")))
    run("compare", "--pairs-file", pairs, "--output", out)
    whole = out.read_text()
    out.write_text("".join(whole.splitlines(keepends=True)[:3]))
    server.reset()

    code, _, err = run("compare", "--pairs-file", pairs, "--output", out, "--resume")

    assert code == 0
    assert "3 of 4 were done before" in err
    assert sorted(out.read_text().splitlines()) == sorted(whole.splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "compare needs IMAGE and --text, or --pairs-file"),
        (["a.jpg", "b.jpg", "c.jpg", "--text", "x", "y"], "3 images and 2 texts"),
        (["a.jpg"], "compare needs IMAGE and --text, or --pairs-file"),
    ],
)
def test_a_comparison_without_pairs_is_wrong_usage(
    run: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """The message says what is missing."""
    with pytest.raises(SystemExit) as caught:
        run("compare", *arguments)

    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_pair_without_a_tab_is_refused(run: Any, tmp_path: Path) -> None:
    """The message has the pair's number and the form."""
    (tmp_path / "pairs.tsv").write_text("a.jpg\ta cat\nb.jpg a dog\n")

    code, _, err = run("compare", "--pairs-file", tmp_path / "pairs.tsv")

    assert code == 4
    assert "pair 2 has no tab and text" in err


def test_a_query_is_composed_in_the_order_of_its_options(
    server: FakeServer, run: Any, photos: list[Path]
) -> None:
    """A weight belongs to the term before it; 1 is the default."""
    code, out, _ = run(
        *("embed-query", "--image", photos[0], "--text", "red", "--weight", "0.5"),
        *("--text", "leather", "--weight", "-0.25", "--json"),
    )

    parts: list[tuple[Any, float]] = [(b"a.jpg", 1.0), ("red", 0.5), ("leather", -0.25)]
    total = np.sum([weight * server.embedding_of(content) for content, weight in parts], axis=0)
    reply = json.loads(out)
    assert (code, reply["model"]) == (0, "fake-8")
    assert reply["values"] == pytest.approx((total / np.linalg.norm(total)).tolist(), abs=1e-6)


def test_a_query_is_saved_as_a_row(run: Any, tmp_path: Path) -> None:
    """The file has the shape and type that `embed --npy` writes."""
    run("embed-query", "--text", "red", "--npy", tmp_path / "query.npy", "--dtype", "int8")

    row = np.load(tmp_path / "query.npy")
    assert row.shape == (1, 8)
    assert row.dtype == np.int8


def test_a_query_prints_a_table_and_reads_standard_input(
    server: FakeServer, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """- is an image, as for the other commands."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"piped")))

    code, out, _ = run("embed-query", "--image", "-", "--text", "red")

    assert (code, out.splitlines()[-1].split()[:3]) == (0, ["query", "query", "8"])
    assert server.received[-1].request.embed_query.queries[0].terms[0].image.content == b"piped"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "embed-query needs --image or --text"),
        (["--weight", "2", "--text", "red"], "--weight applies to the --image or --text before it"),
        (["--image", "-", "--image", "-"], "standard input, which can be read only once"),
    ],
)
def test_a_query_without_terms_is_wrong_usage(
    run: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """The message says what is missing."""
    with pytest.raises(SystemExit) as caught:
        run("embed-query", *arguments)

    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_terms_that_cancel_out_are_refused(run: Any) -> None:
    """The server's reason decides the exit code."""
    code, _, err = run("embed-query", "--text", "red", "--text", "red", "--weight", "-1")

    assert code == 4
    assert "QUERY_INVALID" in err


@pytest.mark.parametrize(
    ("dtype", "width", "missing"), [("float16", 8, np.nan), ("int8", 8, 0), ("binary", 1, 0)]
)
def test_embed_saves_every_type(
    run: Any, photos: list[Path], tmp_path: Path, dtype: str, width: int, missing: float
) -> None:
    """The row of a failed input is NaN where the type has it."""
    out = tmp_path / "out.npy"

    code, _, _ = run("embed", photos[0], "nowhere.jpg", "--text", "a", "--npy", out, "--dtype", dtype)

    rows = np.load(out)
    assert (code, rows.shape) == (1, (3, width))
    assert np.array_equal(rows[1], [missing] * width, equal_nan=True)


def test_lines_of_int8_have_whole_numbers_and_their_scale(
    server: FakeServer, run: Any, photos: list[Path], tmp_path: Path
) -> None:
    """A vector store takes the numbers; times the scale they are the embedding."""
    run("stream", *photos, "--ordered", "--dtype", "int8", "--output", tmp_path / "out.jsonl")

    line = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert all(isinstance(number, int) for number in line["embedding"])
    restored = np.array(line["embedding"]) * line["int8_scale"]
    assert restored == pytest.approx(server.embedding_of(b"a.jpg").tolist(), abs=line["int8_scale"])


def test_the_similarities_of_int8_are_those_of_floats(run: Any, photos: list[Path]) -> None:
    """Bytes are not multiplied as bytes, which would overflow."""
    _, exact, _ = run("embed", photos[0], "--text", "a")
    _, small, _ = run("embed", photos[0], "--text", "a", "--dtype", "int8")

    assert float(small.split()[-1]) == pytest.approx(float(exact.split()[-1]), abs=0.01)


def test_binary_embeddings_are_not_resumed(
    run: Any, capsys: pytest.CaptureFixture[str], photos: list[Path], tmp_path: Path
) -> None:
    """Whether the model is still the same cannot be told by signs."""
    with pytest.raises(SystemExit):
        run("stream", *photos, "--dtype", "binary", "--output", tmp_path / "out.jsonl", "--resume")

    assert "use another --dtype" in capsys.readouterr().err
