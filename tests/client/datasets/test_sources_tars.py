"""Tars of samples: whatever their order and whatever breaks off, no sample is lost or halved silently."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from alignserve.datasets.source import SourceError

from tests.client.datasets.reading import broken_rows, opened, read, reasons, tar_of, texts

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "0.tar"


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


def member(name: str, content: bytes = b"image") -> tuple[str, bytes]:
    return name, content


def pairs(*keys: str) -> list[tuple[str, bytes]]:
    return [
        file
        for key in keys
        for file in (member(f"{key}.jpg", key.encode()), member(f"{key}.txt", key.encode()))
    ]


def test_samples_are_rows(path: Path) -> None:
    """With the tar's path in their keys, and suffixes in any case."""
    path.write_bytes(tar_of([*pairs("000", "001"), member("002.PNG"), member("002.cls", b"7")]))

    found = read(path)

    assert [row.key for row in found] == ["0.tar/000", "0.tar/001", "0.tar/002"]
    assert [row.image for row in found] == [b"000", b"001", b"image"]
    assert texts(found) == ["000", "001", None]


def test_members_that_lie_apart_are_joined(path: Path) -> None:
    """A tar of all images and then all texts has the rows of one of pairs, in the order of first members."""
    apart = [
        *(member(f"{key}.jpg", key.encode()) for key in "bca"),
        *(member(f"{key}.txt", b"t" + key.encode()) for key in "abc"),
    ]
    path.write_bytes(tar_of([*apart, *pairs("d")]))

    found = read(path)

    assert [row.key for row in found] == ["0.tar/b", "0.tar/c", "0.tar/a", "0.tar/d"]
    assert texts(found) == ["tb", "tc", "ta", "d"]
    assert [row.image for row in found] == [b"b", b"c", b"a", b"d"]


def test_members_that_come_twice_fail_their_sample(path: Path) -> None:
    """One of them would be lost; whether they follow one another or not."""
    path.write_bytes(tar_of([member("a.jpg"), member("a.jpg"), *pairs("b", "c"), member("b.txt")]))

    found = read(path)

    assert [row.key for row in found] == ["0.tar/a", "0.tar/b", "0.tar/c"]
    assert reasons(found) == ["MEMBER_TWICE", "MEMBER_TWICE", None]


def test_keys_end_at_the_last_dot(path: Path) -> None:
    """Names with dots are different samples, in the same and in other folders."""
    names = ["photo.1", "photo.2", "a/photo.1", "./b/x", "new\nline", "e\u0301", "x" * 300]
    path.write_bytes(tar_of(pairs(*names)))

    found = read(path)

    assert [row.key for row in found] == [f"0.tar/{name.removeprefix('./')}" for name in names]
    assert reasons(found) == [None] * len(names)


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_names_that_are_not_utf_8_have_keys_of_their_own(path: Path, format_: int) -> None:
    """In both formats that can hold them."""
    keys = ("a\udcff", "a\udcfe", r"a\xff")
    path.write_bytes(tar_of([member(f"{key}.jpg", os.fsencode(key)) for key in keys], format=format_))

    found = read(path)

    assert len({row.key.encode() for row in found}) == 3
    assert [row.image for row in found] == [b"a\xff", b"a\xfe", rb"a\xff"]


def test_sidecars_and_folders_are_not_samples(path: Path) -> None:
    """Neither those of macOS, nor webdataset's own, nor files without a suffix."""
    names = ["._a.jpg", "__MACOSX/a.jpg", ".b.jpg", "x/.git/c.jpg", "README", "__key__", "a.jpg"]
    path.write_bytes(tar_of([special("x.jpg", tarfile.DIRTYPE), *map(member, names)]))

    assert [row.key for row in read(path)] == ["0.tar/a"]


def test_suffixes_of_several_parts_can_be_chosen(path: Path) -> None:
    """Then they begin at the first dot, as for webdataset."""
    path.write_bytes(
        tar_of([member("0.left.png", b"left"), member("0.right.png", b"right"), member("0.txt", b"t")])
    )

    left = read(path, image_column="left.png")

    assert [row.key for row in read(path)] == ["0.tar/0.left", "0.tar/0.right", "0.tar/0"]
    assert [(row.key, row.image, row.text) for row in left] == [("0.tar/0", b"left", "t")]


def test_two_images_of_a_sample_need_a_choice(path: Path) -> None:
    """One of them would be lost."""
    path.write_bytes(tar_of([member("0.jpg", b"photo"), member("0.png", b"mask")]))

    assert reasons(read(path)) == ["IMAGE_AMBIGUOUS"]
    assert [row.image for row in read(path, image_column="jpg")] == [b"photo"]


def test_images_of_kinds_that_are_not_taken_fail(path: Path) -> None:
    """With a text, the row would otherwise be one without its image."""
    path.write_bytes(tar_of([*pairs("0"), member("1.heic"), member("1.txt"), member("2.json", b"{}")]))

    assert reasons(read(path)) == [None, "IMAGE_KIND_NOT_TAKEN", "ROW_EMPTY"]
    assert reasons(read(path, image_suffixes=frozenset({".jpg", ".heic"})))[1] is None


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_fail_their_sample(path: Path, kind: bytes) -> None:
    """They have no content of their own; their target is not looked for in the tar, nor outside of it."""
    path.write_bytes(
        tar_of([*pairs("0"), special("1.jpg", kind, "0.jpg"), member("1.txt"), special("0.json", kind, "x")])
    )

    assert reasons(read(path)) == [None, "IMAGE_NOT_A_FILE"]


def test_large_members_are_not_read(path: Path) -> None:
    """Their header says how large they are; also a sparse one of a terabyte."""
    sparse = tarfile.TarInfo("1.jpg")
    sparse.type = tarfile.GNUTYPE_SPARSE
    sparse_header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    sparse_header[386:410] = b"\0" * 24  # no parts with content
    sparse_header[483:495] = b"%011o\0" % (1 << 32)
    sparse_header[148:156] = b"%06o\0 " % (sum(sparse_header[:148]) + 256 + sum(sparse_header[156:]))
    first = tar_of([member("0.jpg", b"x" * 2000)])[: 512 * 5]
    path.write_bytes(
        first + bytes(sparse_header) + tar_of([member("2.jpg", b"x"), member("2.txt", b"x" * 3000)])
    )

    found = read(path, max_image_bytes=1000, max_text_bytes=2000)

    assert [row.key for row in found] == ["0.tar/0", "0.tar/1", "0.tar/2"]
    assert reasons(found) == ["IMAGE_TOO_LARGE", "IMAGE_TOO_LARGE", "TEXT_TOO_LARGE"]


def test_a_tar_that_breaks_off_in_a_member_has_its_whole_samples(path: Path) -> None:
    """The sample that is cut off is not one, and the file is named."""
    content = tar_of([*pairs("a", "b"), member("c.jpg", b"x" * 3000), member("c.txt")])
    path.write_bytes(content[: 512 * (8 + 3)])

    found, message = broken_rows(opened(path).files[0])

    assert texts(found) == ["a", "b"]
    assert "0.tar: it breaks off at byte 5632, in 'c.jpg'" in message
    assert "after 2 whole samples" in message


@pytest.mark.parametrize("kept", range(1, 9))
def test_a_tar_without_the_mark_of_its_end_is_broken(path: Path, kept: int) -> None:
    """Cut between members or in a header, its last sample may lack some, and is not taken for whole."""
    content = tar_of(pairs("a", "b"))

    path.write_bytes(content[: 512 * kept])
    cleanly, _ = broken_rows(opened(path).files[0])
    path.write_bytes(content[: 512 * kept - 100])
    _, message = broken_rows(opened(path).files[0])

    assert texts(cleanly) in ([], ["a"])
    assert all(row.image and row.text for row in cleanly)
    assert "0.tar" in message


def test_a_tar_without_its_padding_is_whole(path: Path) -> None:
    """One block of zeros ends it."""
    content = tar_of(pairs("a"))
    path.write_bytes(content[: 512 * 5])

    assert texts(read(path)) == ["a"]


def test_garbage_ends_a_tar_after_its_whole_samples(path: Path) -> None:
    """The samples before it count, and the next tar goes on."""
    content = bytearray(tar_of(pairs("a", "b", "c")))
    content[512 * 8 : 512 * 9] = b"garbage!" * 64
    path.write_bytes(content)
    path.with_name("1.tar").write_bytes(tar_of(pairs("d")))

    dataset = opened(path.parent)
    found, message = broken_rows(dataset.files[0])

    assert texts(found) == ["a"]  # b may have lost a member
    assert "damaged" in message
    assert texts([row for row, _ in dataset.files[1].rows()]) == ["d"]


def test_joined_archives_are_read_to_their_end(path: Path) -> None:
    """As `cat a.tar b.tar` makes them; other tools stop at the first end, silently."""
    path.write_bytes(tar_of(pairs("a", "b")) + tar_of(pairs("c")))

    assert texts(read(path)) == ["a", "b", "c"]


@pytest.mark.parametrize("content", [b"", b"x" * 2000, bytes(10240)[:100]])
def test_files_that_are_not_tars_are_broken(path: Path, content: bytes) -> None:
    """They are named, and have no rows."""
    path.write_bytes(content)

    assert broken_rows(opened(path).files[0])[0] == []


def test_an_empty_tar_has_no_rows(path: Path) -> None:
    """It has the mark of its end."""
    path.write_bytes(tar_of([]))

    assert read(path) == []


def test_headers_cannot_demand_memory(path: Path) -> None:
    """A name of a gigabyte, or thousands of headers for one member, are refused unread."""
    huge = tarfile.TarInfo("x")
    huge.type, huge.size = tarfile.XHDTYPE, 1 << 30
    endless = tar_of([*pairs("a")])[: 512 * 4]
    for tail in (huge.tobuf(), special("x", tarfile.XHDTYPE).tobuf() * 5000):
        path.write_bytes(endless + tail)
        found, message = broken_rows(opened(path).files[0])

        assert (texts(found), "header" in message) == ([], True)


def test_texts_and_columns_come_from_the_json(path: Path) -> None:
    """As img2dataset writes it, where there is no text of its own."""
    metadata = b'{"caption": "a cat", "url": "https://example.org", "width": 1.50}'
    path.write_bytes(
        tar_of([member("0.jpg"), member("0.json", metadata), member("1.jpg"), member("1.json", b"{}")])
    )

    found = read(path, columns=["url", "width"])

    assert texts(found) == ["a cat", None]
    assert [row.columns for row in found] == [
        {"url": "https://example.org", "width": "1.50"},
        {"url": None, "width": None},
    ]
    assert texts(read(path, text_column="url"))[0] == "https://example.org"


def test_a_tar_with_nothing_to_read_is_refused(path: Path) -> None:
    """The error lists the suffixes."""
    path.write_bytes(tar_of([member("0.mp3"), member("0.cls")]))

    with pytest.raises(SourceError, match="'mp3', 'cls'"):
        opened(path)
    for options in ({"image_column": "jpg"}, {"text_column": "txt"}):
        with pytest.raises(SourceError, match="'mp3', 'cls'"):
            opened(path, **options)


@pytest.mark.parametrize("name", ["0.tar.gz", "0.tgz", "0.tar.zst"])
def test_compressed_tars_are_refused_or_named(tmp_path: Path, name: str) -> None:
    """Nothing can be found in them without decompressing all before it; next to tars they spoil the run."""
    (tmp_path / name).write_bytes(b"\x1f\x8b" + bytes(100))
    (tmp_path / "1.tar").write_bytes(tar_of(pairs("a")))

    with pytest.raises(SourceError, match="is compressed; decompress it first"):
        opened(tmp_path / name)
    assert opened(tmp_path).problems == [f"{tmp_path / name} is compressed; decompress it first"]


def test_the_same_keys_in_several_tars_are_different_rows(tmp_path: Path) -> None:
    """webdataset numbers the samples of each shard from 0."""
    for number in range(2):
        (tmp_path / f"{number}.tar").write_bytes(tar_of(pairs("000")))

    assert [row.key for row in read(tmp_path)] == ["0.tar/000", "1.tar/000"]


def test_texts_are_read_of_all_tars_if_one_has_some(tmp_path: Path) -> None:
    """Only the first members of each are looked at, and its first text may come later."""
    many = [member(f"{number}.jpg") for number in range(400)]
    (tmp_path / "0.tar").write_bytes(tar_of([*many, *pairs("late")]))
    (tmp_path / "1.tar").write_bytes(tar_of(pairs("early")))

    assert texts(read(tmp_path))[-2:] == ["late", "early"]


def test_real_tar_writers_are_read(path: Path) -> None:
    """Old formats, members of exactly whole blocks, and empty members."""
    for format_ in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        members: list[Any] = [member("0.jpg", b"x" * 512), member("0.txt", b""), member("1.jpg", b"x" * 513)]
        path.write_bytes(tar_of(members, format=format_))

        found = read(path)

        assert [(row.image, row.text) for row in found] == [(b"x" * 512, ""), (b"x" * 513, None)]


def test_sparse_members_are_whole(path: Path) -> None:
    """GNU tar leaves out their gaps with `--sparse`."""
    info = tarfile.TarInfo("0.jpg")
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,1,9,1",
        "GNU.sparse.size": "10",
        "GNU.sparse.name": "0.jpg",
    }
    info.size = 2
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"xy"))
    path.write_bytes(file.getvalue())

    assert [row.image for row in read(path)] == [b"x" + bytes(8) + b"y"]


@pytest.mark.parametrize(
    ("late", "option"),
    [
        (member("late.txt", b"text"), {"text_column": "txt"}),
        (member("late.json", b'{"caption": "text"}'), {"text_column": "caption"}),
    ],
)
def test_a_text_that_comes_late_is_not_left_out(
    path: Path, late: tuple[str, bytes], option: dict[str, str]
) -> None:
    """No tar has a text among its first members; its sample fails, and texts can be asked for or left out."""
    many = [file for row in range(400) for file in (member(f"{row}.jpg"), member(f"{row}.json", b'{"n": 1}'))]
    path.write_bytes(tar_of([*many, member("late.jpg"), late, member("end.jpg")]))

    assert reasons(read(path)) == [*[None] * 400, "COLUMN_LATE", None]
    assert texts(read(path, **option))[-2:] == ["text", None]
    assert reasons(read(path, text_column="")) == [None] * 402


def test_an_image_that_comes_late_is_not_left_out(path: Path) -> None:
    """The other way round: the first members are texts only."""
    path.write_bytes(tar_of([*(member(f"{row}.txt") for row in range(400)), *pairs("late")]))

    assert reasons(read(path))[-2:] == [None, "COLUMN_LATE"]
    assert read(path, image_column="jpg")[-1].image == b"late"
    assert reasons(read(path, image_column="")) == [None] * 401


def test_one_tar_need_not_have_what_another_has(tmp_path: Path) -> None:
    """A text that is asked for is in one of them; in none is an error."""
    (tmp_path / "0.tar").write_bytes(tar_of([member("a.jpg")]))
    (tmp_path / "1.tar").write_bytes(tar_of(pairs("b")))

    assert texts(read(tmp_path, text_column="txt")) == [None, "b"]
    with pytest.raises(SourceError, match=r"texts should be in the members 'cls'; there are 'jpg', 'txt'"):
        read(tmp_path, text_column="cls")


def test_a_tar_whose_files_are_no_samples_is_refused(path: Path) -> None:
    """It would be an empty dataset; its members have no suffix."""
    path.write_bytes(tar_of([member("a"), member("b")]))

    with pytest.raises(SourceError, match=r"no member has a name .* there is 'a'"):
        opened(path)
