"""Folders of image files: rows are in a fixed order, skipped files are counted, and walking never hangs."""

from __future__ import annotations

import os
import socket
import unicodedata
from pathlib import Path

import pytest
from alignserve.datasets.source import SourceError

from tests.client.datasets.reading import opened, read, reasons, rows, texts


def write(folder: Path, *names: str, content: bytes = b"image") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def keys(folder: Path) -> list[str]:
    return [row.key for row in read(folder)]


def test_files_come_before_folders_and_sorted(tmp_path: Path) -> None:
    """The order of rows depends on names only."""
    write(tmp_path, "b/2.jpg", "z.jpg", "a.jpg", "b/1.jpg", "a/9.jpg", "b/c/0.jpg")

    assert keys(tmp_path) == ["a.jpg", "z.jpg", "a/9.jpg", "b/1.jpg", "b/2.jpg", "b/c/0.jpg"]


def test_sidecar_files_are_not_rows(tmp_path: Path) -> None:
    """Hidden files, those of macOS in archives, and folders of systems are counted, not read."""
    write(tmp_path, "a.jpg", "._a.jpg", ".hidden.jpg", "__MACOSX/a.jpg", "@eaDir/a.jpg", ".cache/b.jpg")

    dataset = opened(tmp_path)

    assert [row.key for row in rows(dataset)] == ["a.jpg"]
    assert dataset.skipped == {
        ".heic": 1,
        "without suffix": 1,
        ".html": 1,
        "named pipe": 2,
        "link to a folder": 1,
    }
    assert [problem.rpartition("/")[2] for problem in dataset.problems] == [
        "b.csv.gz is compressed; decompress it first"
    ]


def test_a_name_with_magic_characters_is_not_a_pattern_if_it_exists(tmp_path: Path) -> None:
    """A folder may be called `photos [2020]`."""
    write(tmp_path, "photos [2020]/a.jpg", "photos 2/b.jpg")

    assert keys(tmp_path / "photos [2020]") == ["a.jpg"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing", "does not exist"),
        ("*.jpg", "matches no file"),
        ("https://example.org/a.jpg", "is a URL"),
        ("empty", "nothing to read was found"),
        ("pipe", "named pipe, not a file"),
    ],
)
def test_sources_that_cannot_be_read_are_refused(tmp_path: Path, source: str, message: str) -> None:
    """The error says what is wrong, before any row is read, and a named pipe does not hang."""
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(SourceError, match=message):
        opened(source if "://" in source else tmp_path / source)


def test_images_next_to_tars_need_a_choice(tmp_path: Path) -> None:
    """One of them would be lost; the error names both, and `kind` chooses."""
    write(tmp_path, "a.jpg", "b.tar")

    with pytest.raises(SourceError, match="1 of images, 1 of tar"):
        opened(tmp_path)
    assert len(read(tmp_path, kind="images")) == 1
