"""Folders of image files: rows are in a fixed order, skipped files are counted, and walking never hangs."""

from __future__ import annotations

import os
import socket
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from alignserve.datasets.source import SourceError

from tests.client.datasets.reading import opened, read, reasons, rows, texts

_NOBODY = 65534


def write(folder: Path, *names: str, content: bytes = b"image") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def keys(folder: Path) -> list[str]:
    return [row.key for row in read(folder)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of a user who may not enter every folder, and is that user if the tests run as root."""
    with TemporaryDirectory() as name:
        if os.getuid() == 0:
            os.chown(name, _NOBODY, _NOBODY)
            os.seteuid(_NOBODY)
        try:
            yield Path(name)
        finally:
            os.seteuid(os.getuid())


def test_files_come_before_folders_and_sorted(tmp_path: Path) -> None:
    """The order of rows depends on names only."""
    write(tmp_path, "b/2.jpg", "z.jpg", "a.jpg", "b/1.jpg", "a/9.jpg", "b/c/0.jpg")

    assert keys(tmp_path) == ["a.jpg", "z.jpg", "a/9.jpg", "b/1.jpg", "b/2.jpg", "b/c/0.jpg"]


def test_sidecar_files_are_not_rows(tmp_path: Path) -> None:
    """Hidden files, those of macOS in archives, and folders of systems are counted, not read."""
    write(tmp_path, "a.jpg", "._a.jpg", ".hidden.jpg", "__MACOSX/a.jpg", "@eaDir/a.jpg", ".cache/b.jpg")

    dataset = opened(tmp_path)

    assert [row.key for row in rows(dataset)] == ["a.jpg"]
    assert dataset.skipped == {"hidden": 3, "__MACOSX": 1, "@eaDir": 1}
    assert not dataset.problems


def test_kinds_that_are_not_taken_are_counted(tmp_path: Path) -> None:
    """Formats that not every server reads are skipped by suffix, unless they are asked for."""
    write(tmp_path, "a.jpg", "b.heic", "c.TIFF", "d.tiff", "README", "notes.txt", "c.pdf")

    dataset = opened(tmp_path)

    assert dataset.skipped == {".heic": 1, ".tiff": 2, "without suffix": 1, ".txt": 1, ".pdf": 1}
    assert len(read(tmp_path, image_suffixes=frozenset({".jpg", ".heic"}))) == 2


def test_suffixes_in_upper_case_are_found(tmp_path: Path) -> None:
    """Cameras write DSC_0001.JPG."""
    write(tmp_path, "DSC_0001.JPG", "b.Png", "c.WEBP")

    assert len(keys(tmp_path)) == 3


def test_permission_is_told_from_absence(folder: Path) -> None:
    """Whether a file is in a folder that may not be entered is not known."""
    write(folder, "open/a.jpg", "closed/a.jpg")
    (folder / "closed").chmod(0)

    with pytest.raises(SourceError, match=r"closed/a\.jpg: Permission denied"):
        opened(folder / "closed/a.jpg")
    with pytest.raises(SourceError, match=r"matches no file; .*closed: Permission denied"):
        opened(folder / "closed/*.jpg")
    assert opened(folder / "*/a.jpg").problems == [f"{folder / 'closed/a.jpg'}: Permission denied"]
    (folder / "closed").chmod(0o700)


def test_a_folder_without_permission_is_a_problem(folder: Path) -> None:
    """It is named, and the other folders are read."""
    write(folder, "a.jpg", "closed/b.jpg")
    (folder / "closed").chmod(0)

    dataset = opened(folder)

    (folder / "closed").chmod(0o700)
    assert [row.key for row in rows(dataset)] == ["a.jpg"]
    assert dataset.problems == [f"{folder / 'closed'}: Permission denied"]


def test_a_folder_that_cannot_be_listed_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that vanishes during the walk, or may not be entered, is named; the others are read."""
    write(tmp_path, "a.jpg", "gone/b.jpg", "later/c.jpg")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("gone"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    dataset = opened(tmp_path)

    assert [row.key for row in rows(dataset)] == ["a.jpg", "later/c.jpg"]
    assert dataset.problems == [f"{tmp_path / 'gone'}: No such file or directory"]


def test_pipes_sockets_and_devices_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them is opened, which would wait for its other end."""
    write(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket.jpg")
        (tmp_path / "device.jpg").symlink_to("/dev/zero")

        dataset = opened(tmp_path)

    assert [row.key for row in rows(dataset)] == ["a.jpg"]
    assert dataset.skipped == {"named pipe": 1, "socket": 1, "device": 1}


def test_a_file_that_becomes_a_pipe_fails_alone(tmp_path: Path) -> None:
    """Reading it does not wait for a writer."""
    write(tmp_path, "a.jpg", "b.jpg")
    dataset = opened(tmp_path)
    (tmp_path / "a.jpg").unlink()
    os.mkfifo(tmp_path / "a.jpg")

    assert reasons(rows(dataset)) == ["IMAGE_NOT_A_FILE", None]


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    """So no loop traps the walk, and no link leads it out of the folder."""
    write(tmp_path, "photos/a.jpg", "elsewhere/b.jpg")
    (tmp_path / "photos/loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/out").symlink_to(tmp_path / "elsewhere")

    dataset = opened(tmp_path / "photos")

    assert [row.key for row in rows(dataset)] == ["a.jpg"]
    assert dataset.skipped == {"link to a folder": 2}


def test_links_to_files_are_followed_and_links_to_nothing_fail(tmp_path: Path) -> None:
    """A picture that is missing behind its link is missed, and a link to itself too."""
    write(tmp_path, "store/blob")
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").symlink_to(tmp_path / "store/blob")
    (folder / "b.jpg").symlink_to(tmp_path / "nothing")
    (folder / "c.jpg").symlink_to(folder / "c.jpg")

    found = read(folder)

    assert found[0].image == b"image"
    assert reasons(found) == [None, "IMAGE_UNREADABLE", "IMAGE_UNREADABLE"]


def test_a_link_to_a_folder_can_be_a_source(tmp_path: Path) -> None:
    """A user who names it means the folder behind it."""
    write(tmp_path, "real/a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "real")

    assert keys(tmp_path / "link") == ["a.jpg"]


def test_names_stay_whole(tmp_path: Path) -> None:
    """Dots, newlines and decomposed accents are kept, and make different keys."""
    composed, decomposed = (unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD"))
    names = [
        "a.b.c.jpg",
        "new\nline.jpg",
        composed,
        decomposed,
        "a.jpg",
        "a.jpg.jpg",
        " .jpg",
        "back\\slash.jpg",
    ]
    write(tmp_path, *names)

    assert sorted(keys(tmp_path)) == sorted(names)


def test_names_that_are_not_utf_8_have_keys_of_their_own(tmp_path: Path) -> None:
    """Also apart from files whose names look like such a key."""
    for name in (b"a\xff.jpg", b"a\xfe.jpg", b"a\\xff.jpg", b"a\\\xff.jpg"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"image")

    found = read(tmp_path)

    assert len({row.key for row in found}) == 4
    assert reasons(found) == [None] * 4
    for row in found:
        row.key.encode()


def test_the_same_names_in_several_sources_have_different_keys(tmp_path: Path) -> None:
    """Keys start from the lowest folder that holds all sources."""
    write(tmp_path, "x/photos/a.jpg", "y/photos/a.jpg")

    found = read(tmp_path / "x/photos", tmp_path / "y/photos")

    assert [row.key for row in found] == ["x/photos/a.jpg", "y/photos/a.jpg"]


def test_a_source_that_is_given_twice_is_read_once(tmp_path: Path) -> None:
    """Neither the same path, nor a file in a folder that is given, makes a second row."""
    write(tmp_path, "a.jpg", "b/c.jpg")

    dataset = opened(tmp_path, f"{tmp_path}/", tmp_path / "b", tmp_path / "a.jpg")

    assert [row.key for row in rows(dataset)] == ["a.jpg", "b/c.jpg"]
    assert dataset.skipped == {"given twice": 3}


def test_a_file_above_the_limit_fails_without_being_read(tmp_path: Path) -> None:
    """A sparse file of a terabyte costs nothing."""
    write(tmp_path, "b.jpg", "c.jpg")
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "c.jpg").write_bytes(b"")

    assert reasons(read(tmp_path)) == ["IMAGE_TOO_LARGE", None, "IMAGE_EMPTY"]


def test_texts_next_to_images_are_theirs(tmp_path: Path) -> None:
    """As img2dataset writes them; an image need not have one, and other texts are skipped."""
    write(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa cat\n")
    (tmp_path / "c.txt").write_bytes(b"\xff")
    (tmp_path / "d.txt").write_bytes(b"x" * 11)
    (tmp_path / "other.txt").write_bytes(b"")

    dataset = opened(tmp_path, max_text_bytes=10)

    found = rows(dataset)
    assert dataset.has_texts
    assert texts(found) == ["a cat\n", None, None, None]
    assert reasons(found) == [None, None, "TEXT_INVALID", "TEXT_TOO_LARGE"]
    assert dataset.skipped == {".txt": 1}


def test_texts_can_be_left_out(tmp_path: Path) -> None:
    """An empty name of the column reads no texts, or no images."""
    write(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_text("a cat")

    assert texts(read(tmp_path, text_column="")) == [None]
    only_text = read(tmp_path, image_column="")
    assert (only_text[0].image, only_text[0].text) == (None, "a cat")


def test_a_folder_is_cut_into_blocks(tmp_path: Path) -> None:
    """Each block is a source file with a name of its own, and all rows are in one of them."""
    write(tmp_path, *(f"{number}.jpg" for number in range(7)))

    dataset = opened(tmp_path, files_per_block=3)

    assert [len(list(file.rows())) for file in dataset.files] == [3, 3, 1]
    assert [file.name for file in dataset.files] == ["0.jpg … 2.jpg", "3.jpg … 5.jpg", "6.jpg"]


def test_a_block_s_digest_follows_its_files(tmp_path: Path) -> None:
    """A changed, a missing and a renamed file change it."""
    write(tmp_path, "a.jpg", "b.jpg")
    digests = {opened(tmp_path).files[0].digest() for _ in range(2)}
    (tmp_path / "a.jpg").write_bytes(b"another")
    digests.add(opened(tmp_path).files[0].digest())
    dataset = opened(tmp_path)
    (tmp_path / "b.jpg").rename(tmp_path / "c.jpg")
    digests |= {dataset.files[0].digest(), opened(tmp_path).files[0].digest()}

    assert len(digests) == 4


def test_a_block_s_digest_follows_the_files_next_to_its_images(tmp_path: Path) -> None:
    """Another text or column would go with the embedding of the one before."""
    write(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "a.txt").write_text("one")
    digests = {opened(tmp_path, columns=("url",)).files[0].digest() for _ in range(2)}
    (tmp_path / "a.txt").write_text("another")
    digests.add(opened(tmp_path, columns=("url",)).files[0].digest())
    (tmp_path / "b.txt").write_text("new")
    digests.add(opened(tmp_path, columns=("url",)).files[0].digest())
    (tmp_path / "b.json").write_text("{}")
    digests.add(opened(tmp_path, columns=("url",)).files[0].digest())

    assert len(digests) == 4


def test_a_file_that_vanishes_fails_alone(tmp_path: Path) -> None:
    """It was in the folder when the dataset was opened, so it counts."""
    write(tmp_path, "a.jpg", "b.jpg")
    dataset = opened(tmp_path)
    (tmp_path / "a.jpg").unlink()

    assert reasons(rows(dataset)) == ["IMAGE_UNREADABLE", None]


def test_patterns_find_files_and_folders(tmp_path: Path) -> None:
    """They are sorted, find hidden names only if they ask for them, and can go to any depth."""
    write(tmp_path, "2/b.jpg", "1/a.jpg", "1/.h.jpg", "1/deep/d.jpg", "1/c.png")

    assert [row.key for row in read(tmp_path / "*/*.jpg")] == ["1/a.jpg", "2/b.jpg"]
    assert [row.key for row in read(tmp_path / "**/*.jpg")] == ["1/a.jpg", "1/deep/d.jpg", "2/b.jpg"]
    assert [row.key for row in read(tmp_path / "[1]")] == ["a.jpg", "c.png", "deep/d.jpg"]
    assert [row.key for row in read(tmp_path / "1/.*")] == [".h.jpg"]


def test_a_pattern_leaves_out_what_its_folder_would(tmp_path: Path) -> None:
    """`photos/*` reads the same as `photos`: texts and metadata next to images, and kinds not taken."""
    write(tmp_path, "in/a.jpg", "in/B.JPG", "in/c.heic", "in/notes", "in/deep/d.jpg", "in/__MACOSX/a.jpg")
    (tmp_path / "in/a.txt").write_text("text")
    (tmp_path / "in/a.json").write_text("{}")
    (tmp_path / "in/page.html").write_text("<html>")
    os.mkfifo(tmp_path / "in/pipe")
    os.mkfifo(tmp_path / "in/pipe.jpg")
    (tmp_path / "in/loop").symlink_to("../in")
    (tmp_path / "in/b.csv.gz").write_bytes(b"")

    dataset = opened(tmp_path / "in/*")

    assert keys(tmp_path / "in/*") == ["B.JPG", "a.jpg", "deep/d.jpg"]
    assert [row.text for row in rows(dataset)] == [None, "text", None]
    assert dataset.skipped == {
        ".heic": 1,
        "without suffix": 1,
        ".html": 1,
        "named pipe": 2,
        "link to a folder": 1,
        "__MACOSX": 1,
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
        ("x" * 300, "File name too long"),
        ("*/" + "x" * 300, "matches no file; .*File name too long"),
        ("loop/a.jpg", "Too many levels of symbolic links"),
    ],
)
def test_sources_that_cannot_be_read_are_refused(tmp_path: Path, source: str, message: str) -> None:
    """The error says what is wrong, before any row is read, and a named pipe does not hang."""
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")

    with pytest.raises(SourceError, match=message):
        opened(source if "://" in source else tmp_path / source)


def test_images_next_to_tars_need_a_choice(tmp_path: Path) -> None:
    """One of them would be lost; the error names both, and `kind` chooses."""
    write(tmp_path, "a.jpg", "b.tar")

    with pytest.raises(SourceError, match=r"1 of images \(such as a.jpg\), 1 of tar \(such as b.tar\)"):
        opened(tmp_path)
    assert len(read(tmp_path, kind="images")) == 1


@pytest.mark.parametrize("table", ["data/0.parquet", "list.csv", "metadata.jsonl", "shards/0.tar"])
def test_a_folder_with_images_and_other_data_needs_a_choice(tmp_path: Path, table: str) -> None:
    """One preview next to a dataset would be its only row; the error names both kinds and the options."""
    write(tmp_path, "preview.png", table)
    kind = opened(tmp_path, kind="images")

    with pytest.raises(
        SourceError, match=r"1 of images \(such as preview\.png\).*choose --kind .* or --kind"
    ):
        opened(tmp_path)
    assert kind.skipped == {Path(table).suffix: 1}


def test_a_pattern_of_several_kinds_needs_a_choice(tmp_path: Path) -> None:
    """As its folder does; patterns of one kind each may be given together."""
    write(tmp_path, "a.jpg")
    (tmp_path / "b.csv").write_text("text\nb\n")

    with pytest.raises(SourceError, match=r"\* holds files of several kinds: 1 of csv .*, 1 of images"):
        opened(tmp_path / "*")
    assert [row.key for row in read(tmp_path / "*.jpg", tmp_path / "*.csv")] == ["a.jpg", "b.csv:2"]
    chosen = opened(tmp_path / "*", kind="images")
    assert [row.key for row in rows(chosen)] == ["a.jpg"]
    assert chosen.skipped == {".csv": 1}


@pytest.mark.parametrize("name", ["images.zip", "a.7z", "b.RAR", "c.arrow", "d.xlsx", "e.csv.gz", "f.tgz"])
def test_archives_and_formats_that_are_not_read_are_problems(tmp_path: Path, name: str) -> None:
    """They may hold the rows; once images are chosen, they are counted as skipped."""
    write(tmp_path, "preview.png", name)

    problems = opened(tmp_path).problems
    pattern = opened(tmp_path / "*").problems
    chosen = opened(tmp_path, kind="images")

    assert len(problems) == len(pattern) == 1
    assert problems[0].startswith(f"{tmp_path / name} is ")
    assert problems[0].endswith("leave it out with --kind images")
    assert (chosen.problems, chosen.skipped.total()) == ([], 1)


def test_a_pattern_names_what_it_cannot_look_at(tmp_path: Path) -> None:
    """A file that may be there is not one that is not; links in a loop match nothing."""
    write(tmp_path, "a/b.jpg")
    (tmp_path / "loop").symlink_to("loop")
    name = "x" * 300

    assert opened(tmp_path / "*/b.jpg").problems == []
    with pytest.raises(SourceError, match=f"a/{name}: File name too long"):
        opened(tmp_path / "*" / name)


def test_a_text_that_cannot_be_looked_at_fails_its_row(tmp_path: Path) -> None:
    """Its row is not one without a text."""
    name = "x" * 250
    write(tmp_path, f"{name}.jpg", "b.jpg")
    (tmp_path / "b.long-suffix").write_text("text")

    assert reasons(read(tmp_path, text_column="long-suffix")) == [None, "TEXT_UNREADABLE"]
