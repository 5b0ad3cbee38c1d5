"""CSV and TSV: cells are texts byte for byte, and a bad row fails without harm to the others."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from alignserve.datasets.row import Row
from alignserve.datasets.source import SourceError

from tests.client.datasets.reading import opened, read, reasons, rows, texts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.csv"


def read_bytes(path: Path, content: bytes, **options: object) -> list[Row]:
    path.write_bytes(content)
    return read(path, **options)


@pytest.mark.parametrize(
    "cell", ["007", "1.10", "1e5", "NA", "null", "None", "true", " x ", "", "2020-01-01"]
)
def test_cells_are_texts_as_they_are(path: Path, cell: str) -> None:
    """No type is guessed, neither from one cell nor from those before it."""
    content = "text,n\n" + "1,1\n" * 3000 + f"{cell},{cell}\n"

    last = read_bytes(path, content.encode(), columns=["n"])[-1]

    assert (last.text, last.columns) == (cell, {"n": cell})


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_dialects_are_recognized(path: Path, delimiter: str, end: str, mark: bytes, quote: str) -> None:
    """With a byte order mark or without one, and with either line end; a quoted header hides delimiters."""
    names = delimiter.join((f"{quote}text{quote}", '"a,b;c"', "n"))
    content = mark + f"{names}{end}one{delimiter}2{delimiter}3{end}four{delimiter}5{delimiter}6".encode()

    found = read_bytes(path, content, columns=["n"])

    assert [(row.text, row.columns["n"]) for row in found] == [("one", "3"), ("four", "6")]


def test_tsv_is_separated_by_tabs_whatever_its_header_has(tmp_path: Path) -> None:
    """One column with commas in its name stays one column."""
    path = tmp_path / "data.TSV"

    assert texts(read_bytes(path, b"text\ta,b,c\none, two\t3\n")) == ["one, two"]


def test_a_delimiter_can_be_given(path: Path) -> None:
    """It must be one character."""
    assert texts(read_bytes(path, b"text:a,b\nx:y\n", delimiter=":")) == ["x"]
    with pytest.raises(SourceError, match="must be one ASCII character"):
        opened(path, delimiter="::")


def test_quoted_cells_keep_every_byte(path: Path) -> None:
    """Line ends of all kinds, delimiters, quotes and spaces, also across the blocks of a file."""
    values = [f'{"x" * size}\r\n"quoted", \r and \n, \n\n' for size in (0, 5, (1 << 20) - 30, 1 << 20, 3)]
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["text", "n"], *([value, "1"] for value in values)])

    assert texts(read_bytes(path, file.getvalue().encode(), max_text_bytes=2 << 20)) == values


def test_cells_above_128_kb_are_whole(path: Path) -> None:
    """The standard library's limit does not hold here, with quotes or without."""
    cell = "word " * 60_000

    found = read_bytes(path, f'text,n\n"{cell}",1\n{cell},2\n'.encode())

    assert texts(found) == [cell, cell]


def test_rows_of_the_wrong_width_fail_alone(path: Path) -> None:
    """Rows with too few and too many cells count, and those around them are read."""
    found = read_bytes(path, b'text,n\na,1\nb\n"c\nd",1,2\ne,5\n')

    assert texts(found) == ["a", None, None, "e"]
    assert reasons(found) == [None, "ROW_WIDTH", "ROW_WIDTH", None]
    assert [row.key for row in found] == ["data.csv:2", "data.csv:3", "data.csv:4", "data.csv:6"]


def test_blank_lines_are_not_rows_and_quoted_nothing_is(path: Path) -> None:
    """In a file of one column, an empty text has to be in quotes."""
    assert texts(read_bytes(path, b'text\n\na\n\r\n""\n\n')) == ["a", ""]


def test_an_empty_file_has_no_rows(path: Path, tmp_path: Path) -> None:
    """It is a file of the dataset all the same, and others are read."""
    path.write_bytes(b"")
    (tmp_path / "full.csv").write_bytes(b"text\na\n")

    assert texts(read(tmp_path)) == ["a"]
    assert read(path) == []


def test_a_quote_in_a_cell_without_quotes_is_a_character(path: Path) -> None:
    """Inches and seconds are common, and must not join lines."""
    assert texts(read_bytes(path, b'text,n\n5" disk,1\nb,2\n19" rack,3\n')) == ['5" disk', "b", '19" rack']


@pytest.mark.parametrize(
    "stray", [b'"never closed,1\n', b'"closed" too early,1\n'], ids=["never closed", "closed early"]
)
def test_a_stray_quote_fails_its_line_and_no_other(path: Path, stray: bytes) -> None:
    """It does not eat the rows behind it."""
    found = read_bytes(path, b"text,n\na,1\n" + stray + b"c,3\nd,4\n")

    assert texts(found) == ["a", None, "c", "d"]
    assert reasons(found) == [None, "ROW_QUOTES", None, None]
    assert [row.key for row in found][-1] == "data.csv:5"


def test_a_quote_that_closes_too_far_away_fails_its_line_only(path: Path) -> None:
    """Memory is bounded by the limit of a row."""
    found = read_bytes(path, b'text,n\n"a,1\n' + b"b,2\n" * 100 + b'c",3\n', max_row_bytes=50)

    assert len(found) == 102
    assert reasons(found)[0] == "ROW_QUOTES"
    assert texts(found)[1:] == ["b"] * 100 + ['c"']


def test_a_quote_that_closes_at_the_limit_is_not_closed(path: Path) -> None:
    """A row that was cut at the limit is never taken for a whole one."""
    for limit in range(4, 16):
        found = read_bytes(path, b't\n"a\nb""c"\nx\n', text_column="t", max_row_bytes=limit)

        assert found[-1].text == "x"
        assert found[0].text in ('a\nb"c', None)


def test_a_line_above_the_limit_fails_alone(path: Path) -> None:
    """It is skipped in blocks."""
    found = read_bytes(path, b"text\na\n" + b"x" * (3 << 20) + b"\nb\n", max_row_bytes=100)

    assert texts(found) == ["a", None, "b"]
    assert reasons(found)[1] == "ROW_TOO_LARGE"


def test_bytes_that_are_not_utf_8_fail_their_row(path: Path) -> None:
    """In a column that is not read they do no harm."""
    found = read_bytes(path, b"text,other\ncaf\xe9,1\nb,caf\xe9\n")

    assert texts(found) == [None, "b"]
    assert reasons(found) == ["TEXT_INVALID", None]


def test_images_are_found_by_path(path: Path, tmp_path: Path) -> None:
    """A path starts at the file that names it; a missing file, a URL and a folder fail."""
    (tmp_path / "a.jpg").write_bytes(b"image")
    cells = ["a.jpg", "gone.jpg", "https://example.org/a.jpg", ".", "", f"{tmp_path}/a.jpg", "x/../a.jpg"]
    content = "image_path,text\n" + "".join(f"{cell},x\n" for cell in cells)

    found = read_bytes(path, content.encode())

    assert [row.image for row in found] == [b"image", None, None, None, None, b"image", None]
    assert reasons(found) == [
        None,
        "IMAGE_UNREADABLE",
        "IMAGE_IS_URL",
        "IMAGE_NOT_A_FILE",
        None,
        None,
        "IMAGE_UNREADABLE",  # x does not exist
    ]


def test_paths_can_start_elsewhere(path: Path, tmp_path: Path) -> None:
    """`image_root` is a folder for relative paths."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(b"image")

    assert read_bytes(path, b"file_name\na.jpg\n", image_root=tmp_path / "images")[0].image == b"image"


def test_a_row_with_nothing_in_it_fails(path: Path) -> None:
    """It has no image, and there is no column of texts."""
    assert reasons(read_bytes(path, b"image,n\n,1\n")) == ["ROW_EMPTY"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n\n", "does not begin with a header"),
        (b"id,title\n1,a\n", "'id', 'title'; name it with image_column"),
        (b"text,text\na,b\n", "there are 2 columns 'text'"),
        ("text\na\n".encode("utf-16"), "is UTF-16"),
        (b"t\xe9xt,text\n", "is not UTF-8"),
        (b"\x1f\x8b\x08", "is compressed"),
        (b'"text', "unreadable header"),
    ],
)
def test_files_that_cannot_be_tables_are_refused(path: Path, content: bytes, message: str) -> None:
    """Before any work, with the columns that there are."""
    path.write_bytes(content)

    with pytest.raises(SourceError, match=message):
        opened(path)


def test_a_column_that_was_asked_for_must_be_there(path: Path) -> None:
    """The error lists the columns."""
    path.write_bytes(b"text,n\na,1\n")

    for options in (
        {"text_column": "caption"},
        {"image_column": "x"},
        {"key_column": "id"},
        {"columns": ["y"]},
    ):
        with pytest.raises(SourceError, match="'text', 'n'"):
            opened(path, **options)


def test_all_columns_can_be_kept(path: Path) -> None:
    """All but those that have a part of their own, in the order of the file."""
    path.write_bytes(b"b,text,a\n1,x,2\n")

    dataset = opened(path, columns=["*"])

    assert dataset.schema.names == ["b", "a"]
    assert rows(dataset)[0].columns == {"b": "1", "a": "2"}
