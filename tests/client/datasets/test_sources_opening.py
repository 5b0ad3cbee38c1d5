"""Datasets of several sources: one order, one schema, files that can be sent to other processes."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from alignserve.datasets.source import BrokenSourceError, SourceError
from alignserve.datasets.sources import Kind, SourceOptions, open_dataset
from pyarrow import parquet

from tests.client.datasets.reading import opened, read, reasons, rows, tar_of, texts


@pytest.fixture
def mixed(tmp_path: Path) -> list[Path]:
    """A source of each kind, two of them in folders."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"image")
    (tmp_path / "photos/a.txt").write_bytes(b"of a photo")
    (tmp_path / "tables").mkdir()
    parquet.write_table(pa.table({"text": ["of parquet"], "n": ["1"]}), tmp_path / "tables/1.parquet")
    (tmp_path / "2.csv").write_text("text,n\nof csv,2\n")
    (tmp_path / "3.jsonl").write_text('{"text": "of json", "n": 3}\n')
    (tmp_path / "4.tar").write_bytes(
        tar_of([("0.jpg", b"image"), ("0.txt", b"of tar"), ("0.json", b'{"n": 4}')])
    )
    return [tmp_path / name for name in ("4.tar", "3.jsonl", "2.csv", "tables", "photos")]


def test_a_dataset_may_mix_kinds(mixed: list[Path]) -> None:
    """The rows come in the order of the sources; keys start from the lowest folder that holds all."""
    dataset = opened(*mixed, columns=["n"])

    found = rows(dataset)
    assert [row.key for row in found] == [
        "4.tar/0",
        "3.jsonl:1",
        "2.csv:2",
        "tables/1.parquet:0",
        "photos/a.jpg",
    ]
    assert texts(found) == ["of tar", "of json", "of csv", "of parquet", "of a photo"]
    assert [row.columns["n"] for row in found] == ["4", "3", "2", "1", None]
    assert dataset.schema == pa.schema([("n", pa.string())])
    assert (dataset.has_images, dataset.has_texts) == (True, True)


def test_a_dataset_is_the_same_each_time_and_from_everywhere(
    mixed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys do not depend on the folder in which a command runs."""
    absolute = rows(opened(*mixed))
    monkeypatch.chdir(mixed[0].parent)

    assert rows(opened(*(path.name for path in mixed))) == absolute


def test_files_can_be_pickled(mixed: list[Path]) -> None:
    """A worker on another machine reads the same rows."""
    for file in opened(*mixed).files:
        copy = pickle.loads(pickle.dumps(file))  # noqa: S301 — its own

        assert list(copy.rows()) == list(file.rows())
        assert (copy.name, copy.digest()) == (file.name, file.digest())


def test_a_digest_follows_its_file(mixed: list[Path]) -> None:
    """Its size, its time of change, its first and its last bytes."""
    for file in opened(*mixed[:3]).files:
        path = mixed[0].parent / file.name
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        content = path.read_bytes()
        digests = [file.digest(), file.digest()]
        for changed in (content + b" ", b" " + content[1:], content[:-1] + b" "):
            path.write_bytes(changed)
            os.utime(path, ns=times)
            digests.append(file.digest())
        path.write_bytes(content)
        os.utime(path, ns=(times[0], times[1] + 1))
        digests.append(file.digest())

        assert digests[0] == digests[1]
        assert len(set(digests[1:])) == 5


def test_a_folder_of_tables_of_several_kinds_needs_a_choice(tmp_path: Path) -> None:
    """They may be the same rows twice."""
    (tmp_path / "a.csv").write_text("text\na\n")
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n')

    with pytest.raises(SourceError, match=r"1 of csv \(.*\), 1 of json-lines"):
        opened(tmp_path)
    dataset = opened(tmp_path, kind=Kind.CSV)
    assert texts(rows(dataset)) == ["a"]
    assert dataset.skipped == {".jsonl": 1}


def test_a_kind_can_be_forced(tmp_path: Path) -> None:
    """On a file whose name says something else; a command's kind is a word."""
    (tmp_path / "a.txt").write_text("text\na\n")

    assert texts(read(tmp_path / "a.txt", kind="csv")) == ["a"]
    with pytest.raises(ValueError, match="'xml' is not a valid Kind"):
        SourceOptions(kind="xml")  # type: ignore[arg-type]


def test_content_wins_over_the_suffix(tmp_path: Path) -> None:
    """A Parquet file that is called .csv, and a tar that is called .jsonl."""
    parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "a.csv")
    (tmp_path / "b.jsonl").write_bytes(tar_of([("0.txt", b"b")]))

    assert texts(read(tmp_path / "a.csv", tmp_path / "b.jsonl")) == ["a", "b"]


def test_a_pattern_of_images_makes_blocks(tmp_path: Path) -> None:
    """Not one source file for each."""
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(b"image")

    dataset = opened(tmp_path / "*.jpg", files_per_block=2)

    assert [file.name for file in dataset.files] == ["0.jpg … 1.jpg", "2.jpg … 3.jpg", "4.jpg"]


def test_a_file_that_vanishes_is_broken(mixed: list[Path]) -> None:
    """It is named, and no row of it is invented."""
    files = opened(*mixed[:3], mixed[3] / "1.parquet").files
    for file in files:
        (mixed[0].parent / file.name).unlink()

        with pytest.raises(BrokenSourceError, match=file.name):
            list(file.rows())


def test_something_has_to_be_read(mixed: list[Path]) -> None:
    """Leaving out both images and texts leaves nothing."""
    with pytest.raises(SourceError, match="neither images nor texts"):
        opened(*mixed, image_column="", text_column="")


def test_kept_columns_must_exist(tmp_path: Path) -> None:
    """In one table at least; all columns can be kept only of tables that list them."""
    parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")

    with pytest.raises(
        SourceError, match=r"no file has a column 'n' to keep; the columns of a\.parquet are 'text'"
    ):
        opened(tmp_path, columns=["n"])
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n')
    with pytest.raises(SourceError, match="only Parquet and CSV list their columns"):
        opened(tmp_path / "b.jsonl", columns=["*"])


def test_types_of_kept_columns_must_agree_between_kinds(tmp_path: Path) -> None:
    """Those of CSV are texts."""
    parquet.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("text,n\nb,2\n")

    with pytest.raises(SourceError, match=r"'n' is int64 in a.parquet and string in b.csv"):
        opened(tmp_path / "a.parquet", tmp_path / "b.csv", columns=["n"])


def test_the_default_options_read_what_is_well_known(mixed: list[Path]) -> None:
    """No column is kept."""
    dataset = open_dataset([mixed[2]])

    assert rows(dataset)[0].columns == {}
    assert not dataset.has_images


def test_paths_lead_anywhere_and_pipes_fail(tmp_path: Path) -> None:
    """A table's paths may leave its folder; a named pipe is a failed row and not a hang."""
    (tmp_path / "table").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"image")
    os.mkfifo(tmp_path / "pipe")
    cells = ("../a.jpg", "../pipe", "/dev/zero", "x" * 5000, "a\0b")
    (tmp_path / "table/a.csv").write_text("image\n" + "".join(f"{cell}\n" for cell in cells))

    found = read(tmp_path / "table/a.csv")

    assert found[0].image == b"image"
    unreadable: list[Any] = ["IMAGE_UNREADABLE"] * 2
    assert reasons(found) == [None, "IMAGE_NOT_A_FILE", "IMAGE_NOT_A_FILE", *unreadable]
    assert all(len(row.failure.message) < 300 for row in found if row.failure)


def test_keys_of_a_column_are_unique_among_all_sources(tmp_path: Path) -> None:
    """One may be the name of a picture, or of a sample in a tar."""
    (tmp_path / "a.jpg").write_bytes(b"image")
    (tmp_path / "0.tar").write_bytes(tar_of([("0.jpg", b"image")]))
    for key, place in (("a.jpg", "a.jpg"), ("0.tar/0", "0.tar"), ("b", None)):
        (tmp_path / "t.csv").write_text(f"id,text\n{key},x\n")
        sources = [tmp_path / name for name in ("t.csv", "a.jpg", "0.tar")]

        if place is None:
            assert [row.key for row in read(*sources, key_column="id")] == ["b", "a.jpg", "0.tar/0"]
        else:
            with pytest.raises(SourceError, match=f"the key '{key}' comes twice, in .*{place}"):
                opened(*sources, key_column="id")


def test_a_column_of_keys_needs_a_table(tmp_path: Path) -> None:
    """Pictures and tars have none; the option would do nothing."""
    (tmp_path / "a.jpg").write_bytes(b"image")

    with pytest.raises(SourceError, match="keys should be in the column 'id', but no source is a table"):
        opened(tmp_path, key_column="id")
