"""The pictures of a contact sheet: found by path or key, made small, and never more than they may be."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from alignserve.search.pictures import SheetPictures, media_type_of

PHOTO = Path(__file__).parents[2] / "data/photos/cat.jpg"
GIF = b"GIF89a not decoded here"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a photo in a subfolder, and a file outside it that is not for the sheet."""
    (tmp_path / "photos/cats").mkdir(parents=True)
    shutil.copy(PHOTO, tmp_path / "photos/cats/cat.jpg")
    shutil.copy(PHOTO, tmp_path / "private.jpg")
    return tmp_path / "photos"


def test_a_photo_becomes_a_small_jpeg(folder: Path) -> None:
    """By the path of its row."""
    with SheetPictures() as pictures:
        picture, missing = pictures.of_row("any", {"path": str(folder / "cats/cat.jpg")})

    assert missing == ""
    assert picture is not None
    assert picture.media_type == "image/jpeg"
    assert 1000 < len(picture.content) < PHOTO.stat().st_size


def test_a_key_is_a_path_below_the_folder_that_is_given(folder: Path) -> None:
    """So are relative paths."""
    with SheetPictures(folder, makes_thumbnails=False) as pictures:
        by_key, _ = pictures.of_row("cats/cat.jpg", {})
        by_path, _ = pictures.of_row("1", {"path": "cats/../cats/cat.jpg"})

    assert by_key is not None
    assert by_key.content == PHOTO.read_bytes()
    assert by_path == by_key


def test_a_photo_that_has_moved_is_found_by_its_key(folder: Path) -> None:
    """Below the folder that is given; a path that leads to a file goes first."""
    with SheetPictures(folder, makes_thumbnails=False) as pictures:
        moved, _ = pictures.of_row("cats/cat.jpg", {"path": "/gone/cats/cat.jpg"})
        gone, missing = pictures.of_row("cats/dog.jpg", {"path": "/gone/cats/dog.jpg"})

    assert moved is not None
    assert (gone, missing.endswith("cats/dog.jpg is not there")) == (None, True)


@pytest.mark.parametrize("key", ["../private.jpg", "cats/../../private.jpg", "\0", "cats"])
def test_a_key_that_leads_elsewhere_has_no_picture(folder: Path, key: str) -> None:
    """The same holds for a name that cannot be a file's, and for a folder."""
    with SheetPictures(folder, makes_thumbnails=False) as pictures:
        picture, missing = pictures.of_row(key, {})

    assert picture is None
    assert missing


def test_a_link_out_of_the_folder_is_not_followed(folder: Path) -> None:
    """Its target is not below the folder."""
    (folder / "link.jpg").symlink_to(folder.parent / "private.jpg")

    with SheetPictures(folder, makes_thumbnails=False) as pictures:
        assert pictures.of_row("link.jpg", {})[0] is None


def test_a_name_that_is_not_utf8_is_found_by_its_url(tmp_path: Path) -> None:
    """A store has only text."""
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/c\xe9t.gif"))
    file.write_bytes(GIF)

    with SheetPictures(makes_thumbnails=False) as pictures:
        picture, _ = pictures.of_row("any", {"path": file.as_uri()})

    assert picture is not None
    assert (picture.media_type, picture.content) == ("image/gif", GIF)


def test_a_picture_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A row may be older than its file."""
    with SheetPictures(makes_thumbnails=False) as pictures:
        assert pictures.of_row("k", {"path": "/no/such.jpg"}) == (None, "/no/such.jpg is not there")
        assert pictures.of_row("k", {}) == (None, "no picture in the store")


@pytest.mark.parametrize("makes_thumbnails", [True, False])
def test_what_is_no_picture_is_not_embedded(tmp_path: Path, makes_thumbnails: bool) -> None:
    """Whatever its name says: a page or an SVG could have a script in it."""
    file = tmp_path / "page.jpg"
    file.write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")

    with SheetPictures(makes_thumbnails=makes_thumbnails) as pictures:
        picture, missing = pictures.of_row("k", {"path": str(file)})

    assert picture is None
    assert missing


def test_without_pillow_only_small_files_are_embedded(tmp_path: Path) -> None:
    """The others say what to install."""
    file = tmp_path / "large.gif"
    file.write_bytes(GIF + bytes(256 << 10))

    with SheetPictures(makes_thumbnails=False) as pictures:
        picture, missing = pictures.of_row("k", {"path": str(file)})

    assert picture is None
    assert "pip install pillow" in missing


def test_all_pictures_together_have_a_limit(tmp_path: Path) -> None:
    """A sheet of a thousand rows still opens."""
    file = tmp_path / "a.gif"
    file.write_bytes(GIF)

    with SheetPictures(makes_thumbnails=False, max_total_bytes=2 * len(GIF) + 1) as pictures:
        found = [pictures.of_row("k", {"path": str(file)}) for _ in range(3)]

    assert [picture is not None for picture, _ in found] == [True, True, False]
    assert found[2][1].startswith("left out")


def test_pictures_of_the_query_are_shown(tmp_path: Path) -> None:
    """From a path or from standard input; one that cannot be read is named only."""
    with SheetPictures(makes_thumbnails=False) as pictures:
        assert pictures.of_image(PHOTO) is not None
        assert pictures.of_image(PHOTO.read_bytes()) is not None
        assert pictures.of_image(tmp_path / "nothing.jpg") is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"RIFF\0\0\0\0WAVE", None),
        (b"BM", "image/bmp"),
        (b"<svg", None),
        (b"", None),
    ],
)
def test_a_picture_is_known_by_its_first_bytes(content: bytes, expected: str | None) -> None:
    """The name of a file says nothing."""
    assert media_type_of(content) == expected
