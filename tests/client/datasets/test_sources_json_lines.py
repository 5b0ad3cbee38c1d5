"""JSON Lines: each line is a row or fails by itself, and values stay what they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alignserve.datasets.row import Row
from alignserve.datasets.source import SourceError

from tests.client.datasets.reading import opened, read, reasons, rows, texts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.jsonl"


def read_bytes(path: Path, content: bytes, **options: object) -> list[Row]:
    path.write_bytes(content)
    return read(path, **options)


def test_each_line_is_a_row_with_its_number(path: Path) -> None:
    """Blank lines are not rows, a byte order mark and CR LF do no harm, and the last line needs no end."""
    found = read_bytes(path, b'\xef\xbb\xbf{"text": "a"}\r\n\n  \n{"text": "b"}\n{"text": "c"}')

    assert texts(found) == ["a", "b", "c"]
    assert [row.key for row in found] == ["data.jsonl:1", "data.jsonl:4", "data.jsonl:5"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[1]", "JSON_NOT_AN_OBJECT"),
        (b'"text"', "JSON_NOT_AN_OBJECT"),
        (b"null", "JSON_NOT_AN_OBJECT"),
        (b'{"text": "x"} {"text": "y"}', "JSON_INVALID"),
        (b"{'text': 'x'}", "JSON_INVALID"),
        (b'{"text": "caf\xe9"}', "JSON_INVALID"),
        (b'{"text": "x", "text": "y"}', "JSON_NAME_TWICE"),
        (b'{"text": "\\ud83d"}', "TEXT_INVALID"),
        (b'{"text": 7}', "TEXT_INVALID"),
        (b'{"text": NaN}', "TEXT_INVALID"),
        (b'{"text": ["x"]}', "TEXT_INVALID"),
        (b'{"text": null}', "ROW_EMPTY"),
        (b"{}", "ROW_EMPTY"),
        (b'{"text": "x", "n": ' + b"[" * 100_000 + b"}", "JSON_INVALID"),
        (b'{"text": "' + b"x" * 200_000 + b'"}', "ROW_TOO_LARGE"),
    ],
)
def test_a_bad_line_fails_alone(path: Path, line: bytes, reason: str) -> None:
    """Its neighbours are read, and it has a key and a reason."""
    found = read_bytes(path, b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n', max_row_bytes=150_000)

    assert texts(found) == ["a", None, "b"]
    assert reasons(found) == [None, reason, None]


def test_an_image_that_comes_late_is_not_left_out(path: Path, tmp_path: Path) -> None:
    """The columns are chosen by the first lines; a row with another one fails, and can be asked for."""
    (tmp_path / "a.jpg").write_bytes(b"image")
    lines = ['{"text": "a"}'] * 150 + ['{"text": "b", "image": "a.jpg"}', '{"text": "c", "image": null}']
    path.write_text("\n".join(lines))

    by_default, asked_for = read(path), read(path, image_column="image")
    only_texts = read(path, image_column="")

    assert reasons(by_default) == [*[None] * 150, "COLUMN_LATE", None]
    assert asked_for[150].image == b"image"
    assert not any(reasons(only_texts))


def test_a_last_line_that_is_cut_off_fails(path: Path) -> None:
    """The message says that the file may be cut off."""
    found = read_bytes(path, b'{"text": "a"}\n{"text": "b')

    assert reasons(found) == [None, "JSON_INVALID"]
    assert found[1].failure is not None
    assert "cut off" in found[1].failure.message


def test_only_line_feeds_end_lines(path: Path) -> None:
    """U+2028, U+2029, U+0085 and a lone CR are parts of texts."""
    text = "a\u2028b\u2029c\x85d\x0be"

    found = read_bytes(path, json.dumps({"text": text}, ensure_ascii=False).encode() + b'\n{"text":\r"x"}\n')

    assert texts(found) == [text, "x"]


def test_surrogate_pairs_are_characters(path: Path) -> None:
    """Only a lone one is an error."""
    assert texts(read_bytes(path, b'{"text": "\\ud83d\\ude00"}\n')) == ["😀"]


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ('"x"', "x"),
        ('"007"', "007"),
        ("7.10e-1", "7.10e-1"),
        ("1" * 5000, "1" * 5000),
        ("1e999", "1e999"),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ("true", "true"),
        ("null", None),
        ('[1.50, "é", null]', '[1.50, "é", null]'),
        ('{"a": {"b": 1e5}}', '{"a": {"b": 1e5}}'),
    ],
)
def test_kept_values_are_texts(path: Path, value: str, kept: str | None) -> None:
    """Strings as they are, null as nothing, and others as JSON, with numbers as they are written."""
    found = read_bytes(path, f'{{"text": "a", "n": {value}}}\n{{"text": "b"}}\n'.encode(), columns=["n"])

    assert [row.columns["n"] for row in found] == [kept, None]


def test_a_kept_value_with_a_lone_surrogate_fails_its_row(path: Path) -> None:
    """No file could hold it."""
    found = read_bytes(path, b'{"text": "a", "n": ["\\ud83d"]}\n', columns=["n"])

    assert reasons(found) == ["COLUMN_INVALID"]


def test_images_are_paths_also_as_hugging_face_nests_them(path: Path, tmp_path: Path) -> None:
    """Bytes cannot be in JSON."""
    (tmp_path / "a.jpg").write_bytes(b"image")
    values: list[object] = ["a.jpg", {"bytes": None, "path": "a.jpg"}, {"bytes": "/9j/", "path": "a.jpg"}, 7]

    found = read_bytes(path, "".join(json.dumps({"image": value}) + "\n" for value in values).encode())

    assert [row.image for row in found] == [b"image", b"image", None, None]
    assert reasons(found) == [None, None, "IMAGE_INVALID", "IMAGE_INVALID"]


def test_a_column_can_be_an_image_and_be_kept(path: Path, tmp_path: Path) -> None:
    """Its path is then a column as well."""
    (tmp_path / "a.jpg").write_bytes(b"image")

    row = read_bytes(path, b'{"image": "a.jpg"}\n', columns=["image"])[0]

    assert (row.image, row.columns) == (b"image", {"image": "a.jpg"})


def test_keys_can_come_from_a_column(path: Path) -> None:
    """Texts and numbers; others, and missing ones, fail with the line as key."""
    lines = (
        b'{"id": "x", "text": "a"}',
        b'{"id": 7, "text": "b"}',
        b'{"id": "", "text": "c"}',
        b'{"text": "d"}',
    )

    found = read_bytes(path, b"\n".join(lines), key_column="id")

    assert [row.key for row in found] == ["x", "7", "data.jsonl:3", "data.jsonl:4"]
    assert reasons(found) == [None, None, "KEY_INVALID", "KEY_INVALID"]


def test_a_key_that_comes_twice_is_refused(path: Path, tmp_path: Path) -> None:
    """In one file or in two, before any work."""
    path.write_bytes(b'{"id": "x", "text": "a"}\n')
    (tmp_path / "more.jsonl").write_bytes(b'{"id": "y", "text": "a"}\n{"id": "x", "text": "b"}\n')

    with pytest.raises(SourceError, match=r"the key 'x' comes twice, in data.jsonl and more.jsonl"):
        opened(tmp_path, key_column="id")


def test_an_empty_file_has_no_rows(path: Path, tmp_path: Path) -> None:
    """It may be one of many."""
    path.write_bytes(b"")
    (tmp_path / "more.jsonl").write_bytes(b'{"text": "a"}\n')

    assert texts(rows(opened(tmp_path))) == ["a"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"text": "a"}]', "is a JSON array"),
        ("a.jsonl", b'{"url": "a"}\n', "among 'url'"),
        ("a.jsonl.gz", b"\x1f\x8b", "is compressed"),
        ("a.data", b"hello", "is of an unknown kind"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """With what to do."""
    (tmp_path / name).write_bytes(content)

    with pytest.raises(SourceError, match=message):
        opened(tmp_path / name)


def test_a_file_is_recognized_by_its_content(tmp_path: Path) -> None:
    """A given file needs no suffix."""
    (tmp_path / "data").write_bytes(b' {"text": "a"}\n')

    assert texts(read(tmp_path / "data")) == ["a"]


@pytest.mark.parametrize(
    "content", [b'[{"text": "a"}]\n', b'{\n"text": "a"\n}\n', '{"text": "a"}\n'.encode("utf-16")]
)
def test_files_without_objects_in_their_lines_are_refused(path: Path, content: bytes) -> None:
    """An array, an object over several lines, another encoding."""
    path.write_bytes(content)

    with pytest.raises(SourceError, match="none of its first 100 lines is a JSON object"):
        opened(path)
