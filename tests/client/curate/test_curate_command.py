"""The command `curate`: options, what it prints, and how it exits."""

from __future__ import annotations

import csv
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from alignserve.cli import main
from alignserve.testing import FakeServer

from tests.client.curate.planted import caption, photo


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A CSV file of ten pairs: one has a short text, one a broken picture, and one a high score."""
    folder = tmp_path / "source"
    folder.mkdir()
    with (folder / "pairs.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["image_path", "caption", "punsafe"])
        for number in range(10):
            image = photo(number, 210, 205)
            (folder / f"{number}.jpg").write_bytes(image[:2000] if number == 1 else image)
            text = "cat" if number == 0 else caption(number)
            lines.writerow([f"{number}.jpg", text, "0.9" if number == 2 else "0.1"])
    return folder / "pairs.csv"


@pytest.fixture
def run(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command into a folder; returns its exit code, stdout, stderr, and the rows of the output."""

    def call(*arguments: object, server: FakeServer | None = None) -> tuple[int, str, str, list[Any]]:
        where = ["--server", server.target] if server else ["--no-similarity"]
        folder = tmp_path / "curated"
        given = ["curate", source, "--to", folder, "--processes", 1, *where, *arguments]
        code = main(list(map(str, given)))
        captured = capsys.readouterr()
        parts = sorted(folder.glob("part-*"))
        rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
        return code, captured.out.strip(), captured.err, rows

    return call


def test_a_preset_with_cuts_and_the_servers_similarity(run: Any, tmp_path: Path) -> None:
    """The last line is the account; the exit code says that a row failed."""
    with FakeServer() as server:
        code, out, err, rows = run(
            "--preset", "coyo", "--max", "punsafe=0.5", "--top", "0.5", "--columns", "punsafe", server=server
        )

    manifest = json.loads((tmp_path / "curated/manifest.json").read_text())
    counts = manifest["curation"]
    assert code == 1
    assert out.startswith(f"10 rows in = {counts['kept']} kept + {counts['dropped']} dropped + 1 failed")
    assert out.endswith("failures.jsonl")
    assert "rule NSFW_GANTMAN is not applied: the source has no column nsfw_score_gantman" in err
    assert counts["not_applied"]["NSFW_GANTMAN"] == ["nsfw_score_gantman"]
    assert counts["all_reasons"]["NOT_IN_TOP_FAKE_SIMILARITY"] == 5
    assert counts["all_reasons"]["MAX_PUNSAFE"] == 1
    assert counts["first_reasons"]["TEXT_TOO_SHORT"] == 1
    assert {row["punsafe"] for row in rows} == {"0.1", "0.9"}  # a text of CSV stays a text
    assert all(-1 <= row["fake_similarity"] <= 1 for row in rows)
    assert manifest["model"]["fingerprint"] == "fake-64"


def test_rules_can_be_left_out_and_lists_given(run: Any, tmp_path: Path) -> None:
    """A word list and another language; `--without` drops a rule of the preset."""
    (tmp_path / "words.txt").write_text("garden\n")

    code, out, _, rows = run(
        "--preset", "datacomp-basic", "--without", "TEXT_TOO_SHORT", "--without", "TOO_FEW_WORDS",
        "--language", "de", "--blocked-words", tmp_path / "words.txt", "--kept-only",
    )  # fmt: skip

    assert code == 1
    assert rows == []
    assert out.startswith("10 rows in = 0 kept + 9 dropped + 1 failed (1 IMAGE_UNREADABLE)")


def test_hashes_can_be_excluded(run: Any, tmp_path: Path) -> None:
    """Those of the output of an earlier run."""
    _, _, _, rows = run()
    phashes = [row["image_phash"] for row in rows][:3]
    (tmp_path / "hashes.txt").write_text("\n".join(phashes))
    (tmp_path / "curated").rename(tmp_path / "earlier")

    _, _, _, again = run("--exclude-phashes", tmp_path / "hashes.txt")

    assert [row["reasons"] for row in again] == [["EXCLUDED_PICTURE"]] * 3 + [[]] * 6


def test_a_scorer_fills_a_column(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named as module:callable."""
    (tmp_path / "lengths.py").write_text("def score(images, texts): return [len(text) for text in texts]")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lengths", raising=False)

    _, _, _, rows = run("--scorer", "text_score=lengths:score", "--min", "text_score=10")

    assert [row["reasons"] for row in rows] == [["MIN_TEXT_SCORE"]] + [[]] * 8
    assert all(row["text_score"] == len(row["text"]) for row in rows)


def test_a_folder_is_resumed_only_if_asked(run: Any) -> None:
    """And with other rules never."""
    run("--preset", "coyo")
    code, _, err, _ = run("--preset", "coyo")
    resumed, out, _, _ = run("--preset", "coyo", "--resume")
    other, _, other_err, _ = run("--preset", "laion", "--resume")

    assert (code, resumed, other) == (4, 1, 4)
    assert "--resume" in err
    assert out.startswith("10 rows in")
    assert "cannot be resumed" in other_err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min", "absent=1"], "needs a column absent"),
        (["--top", "0.5"], "leave out --no-similarity"),
        (["--without", "NO_NOUN"], "no rule NO_NOUN"),
        (["--scorer", "x=absent_module:f"], "cannot be loaded"),
        (["--scorer", "width=math:sqrt"], "scorer math:sqrt cannot fill width"),
        (["--scorer", "x=math:sqrt", "--scorer", "x=math:sin"], "scorer math:sin cannot fill x"),
        (["--min", "text=3"], "the column text has texts"),
        (["--top", "language=0.5"], "the column language has texts"),
        (["--min", "width=3", "--max", "width=2"], "no width is at least 3 and at most 2"),
        (["--blocked-words", "absent.txt"], "absent.txt cannot be read: No such file"),
        (["--blocked-words", sys.executable], "is not a text in UTF-8"),
        (["--near-duplicates", "absent", "--min-cosine", "0.95"], "absent has no part-"),
    ],
)
def test_options_that_cannot_be_followed_are_refused(
    run: Any, tmp_path: Path, options: list[str], message: str
) -> None:
    """Before anything is written."""
    code, _, err, _ = run(*options)

    assert code == 4
    assert message in err
    assert not (tmp_path / "curated").exists()


@pytest.mark.parametrize(
    "option",
    [
        "--top=0",
        "--top=1.5",
        "--top=x",
        "--min=1",
        "--min=a=b",
        "--max==1",
        "--min=a=nan",
        "--min-cosine=1.01",
        "--min-cosine=nan",
        "--language=english",
    ],
)
def test_malformed_options_are_named(run: Any, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With what they should look like."""
    with pytest.raises(SystemExit) as ended:
        run(option)

    assert ended.value.code == 2
    assert "is not" in capsys.readouterr().err


def test_near_duplicates_need_a_cosine(run: Any, tmp_path: Path) -> None:
    """Both options or none."""
    with pytest.raises(SystemExit) as ended:
        run("--near-duplicates", tmp_path)

    assert ended.value.code == 2


def test_near_duplicates_are_counted_and_the_search_is_named(run: Any, source: Path, tmp_path: Path) -> None:
    """In what the command prints and in the manifest. The server has read a picture that fails here."""
    vectors = tmp_path / "vectors"
    vectors.mkdir()
    with FakeServer() as server:
        assert main(["embed-dataset", str(source), "--to", str(vectors), "--server", server.target]) == 0

    code, out, err, rows = run("--near-duplicates", vectors, "--min-cosine", "0.000001")

    search = json.loads((tmp_path / "curated/manifest.json").read_text())["curation"]["searches"]
    assert (code, out.split(";")[0][:10]) == (1, "10 rows in")
    assert "exact search among 9 rows" in err
    assert search["NEAR_DUPLICATE"]["is_exact"]
    assert rows[0]["reasons"] == []


def test_a_tar_keeps_what_img2dataset_writes(tmp_path: Path) -> None:
    """The size before it was resized, which DataComp's filter is about."""
    source = tmp_path / "source"
    source.mkdir()
    with tarfile.open(source / "00000.tar", "w") as tar:
        for number, width in enumerate((600, 601)):
            metadata = {"url": f"http://{number}", "original_width": width, "original_height": 200}
            for suffix, content in (
                ("jpg", photo(number, 64, 64)),
                ("txt", caption(number).encode()),
                ("json", json.dumps(metadata).encode()),
            ):
                member = tarfile.TarInfo(f"{number:05}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

    options = ["--preset", "datacomp-basic", "--no-similarity", "--processes", "1"]
    code = main(["curate", str(source), "--to", str(tmp_path / "curated"), *options])

    rows = pq.read_table(next((tmp_path / "curated").glob("part-*"))).to_pylist()
    assert code == 0
    assert [row["reasons"] for row in rows] == [[], ["ASPECT_RATIO_TOO_HIGH"]]
    assert [(row["url"], row["width"], row["aspect_ratio"]) for row in rows] == [
        ("http://0", 64, 3.0),
        ("http://1", 64, 3.005),
    ]


def test_a_folder_of_images_with_texts_is_a_source(tmp_path: Path) -> None:
    """It lists no columns, and needs none."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.jpg").write_bytes(photo(1, 210, 205))
    (source / "a.txt").write_text(caption(1))

    code = main(
        ["curate", str(source), "--to", str(tmp_path / "curated"), "--preset", "coyo", "--no-similarity"]
    )

    (row,) = pq.read_table(next((tmp_path / "curated").glob("part-*"))).to_pylist()
    assert code == 0
    assert (row["verdict"], row["text"]) == ("kept", caption(1))
    assert row["image"]["bytes"] == photo(1, 210, 205)
