"""Reads CSV and TSV, byte for byte and row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from alignserve.datasets.row import Row, RowFailure
from alignserve.datasets.source import BrokenSourceError, Cursor, SourceError
from alignserve.datasets.sources.files import FileError, digest_of, open_regular
from alignserve.datasets.sources.lines import BOM, Lines
from alignserve.datasets.sources.rows import RowBuilder, RowError, decoded, failed

_QUOTE = b'"'
_DELIMITERS = (b",", b"\t", b";", b"|")  # the first of those that are as frequent
_TAB_SUFFIXES = (".tsv", ".tab")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class Layout(NamedTuple):
    """How the cells of a file are laid out.

    Attributes:
        names: Of the columns, from the header.
        delimiter: Between cells, one byte.
    """

    names: tuple[str, ...]
    delimiter: bytes


@dataclass(frozen=True, slots=True)
class DelimitedFile:
    """A file of cells between delimiters, with a header: CSV, TSV and their relatives.

    Every cell is a text, exactly as the file has it: no type is guessed, `007`, `NA` and `null` are texts,
    and an empty cell is an empty text (or no image, in the column of images). A cell in double quotes may
    hold delimiters, line ends, which stay as they are, and quotes, written twice. A quote within a cell that
    does not begin with one is a character like others. Records end with LF or CR LF. Blank lines are not
    rows.

    A row's place is the number of the line on which it begins, from 1 for the header, and a cursor is the
    position behind a row. A row fails by itself if it has more or fewer cells than the header, is larger than
    the limit, or is not UTF-8 in a column that is read. If a quote is not closed, within the limit or at all,
    or is closed in the middle of a cell, the line on which it opened fails and reading continues with the
    next line: a stray quote neither eats the rows behind it nor needs more memory than the limit.

    Attributes:
        name: The file's path below the source.
        path: Of the file.
        builder: Makes the rows.
        layout: Of the file.
        max_row_bytes: Larger rows fail.
    """

    name: str
    path: Path
    builder: RowBuilder
    layout: Layout
    max_row_bytes: int

    def digest(self) -> str:
        return digest_of(self.path)

    def rows(self, start: Cursor = 0) -> Iterator[tuple[Row, Cursor]]:
        """Yields the rows, see `SourceFile`."""
        try:
            with open_regular(self.path) as file:
                lines = Lines(file, start)
                if start == 0:
                    _record(lines, self.layout.delimiter, self.max_row_bytes)  # the header
                while True:
                    number = lines.number
                    record = _record(lines, self.layout.delimiter, self.max_row_bytes)
                    if record is None:
                        return
                    if record:
                        yield self._row(record, number), lines.position
        except (FileError, OSError) as error:
            raise BrokenSourceError(f"{self.path}: {error}") from error

    def _row(self, record: list[bytes] | RowFailure, number: int) -> Row:
        place = f"{self.name}:{number}"
        if isinstance(record, RowFailure):
            return Row(place, failure=record)
        names = self.layout.names
        if len(record) != len(names):
            return failed(place, "ROW_WIDTH", f"the row has {len(record)} cells, the header {len(names)}")
        values = {
            name: _decoded(cell)
            for name, cell in zip(names, record, strict=True)
            if name in self.builder.needed
        }
        return self.builder.build(place, values)


def layout_of(path: Path, delimiter: str | None, max_row_bytes: int) -> Layout:
    """Returns the layout of a file.

    Without a delimiter, it is a tab if the file's suffix says so, and otherwise the comma, tab, semicolon or
    bar that is most frequent in the header, outside quotes.

    Raises:
        FileError: It cannot be read.
        SourceError: It has no header, is not UTF-8, or the delimiter is not one byte.
    """
    with open_regular(path) as file:
        start = file.read(2)
        if start in _UTF_16:
            raise SourceError(f"{path} is UTF-16; convert it: iconv -f UTF-16 -t UTF-8")
        file.seek(0)
        line = file.readline(max_row_bytes)
        chosen = _delimiter(line, path) if delimiter is None else delimiter.encode()
        if len(chosen) != 1 or chosen in b'"\r\n':
            raise SourceError(f"the delimiter is {delimiter!r}; it must be one ASCII character, not a quote")
        file.seek(0)
        header = _record(Lines(file, 0), chosen, max_row_bytes)
    if header is None or header in ([], [BOM]):
        raise SourceError(f"{path} does not begin with a header")
    if isinstance(header, RowFailure):
        raise SourceError(f"{path} has an unreadable header: {header.message}")
    try:
        names = tuple(
            cell.decode("utf-8-sig" if number == 0 else "utf-8") for number, cell in enumerate(header)
        )
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8: {error}; convert it, such as with iconv") from error
    return Layout(names, chosen)


def _delimiter(header: bytes, path: Path) -> bytes:
    if path.suffix.lower() in _TAB_SUFFIXES:
        return b"\t"
    unquoted = b"".join(header.split(_QUOTE)[::2])
    counts = Counter({mark: unquoted.count(mark) for mark in _DELIMITERS})
    return counts.most_common(1)[0][0]


def _decoded(cell: bytes) -> str | RowError:
    try:
        return decoded(cell, "TEXT_INVALID")
    except RowError as error:
        return error


def _record(lines: Lines, delimiter: bytes, max_bytes: int) -> list[bytes] | RowFailure | None:
    """Returns the next record's cells, none for a blank line, or why it cannot be read; `None` at the end."""
    position, number = lines.position, lines.number
    line = lines.next(max_bytes + 1)
    if not line:
        return None
    if len(line) > max_bytes and not line.endswith(b"\n"):
        lines.finish_line()
        return RowFailure("ROW_TOO_LARGE", f"the line has more than {max_bytes} bytes")
    start = len(BOM) if position == 0 and line.startswith(BOM) else 0
    if not _without_end(line):
        return []
    if _QUOTE not in line:
        return _without_end(line).split(delimiter)
    try:
        return _Record(line, start, lines, max_bytes).cells(delimiter)
    except RowError as error:
        lines.go_back(position + len(line), number + 1)
        return error.failure


def _without_end(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r") if line.endswith(b"\n") else line


class _Record:
    """A record with quotes, which takes further lines as its cells need them."""

    def __init__(self, line: bytes, start: int, lines: Lines, max_bytes: int) -> None:
        self._data = bytearray(line)
        self._position = start
        self._lines = lines
        self._max_bytes = max_bytes

    def cells(self, delimiter: bytes) -> list[bytes]:
        """Returns the cells.

        Raises:
            RowError: A quote is not closed, or is closed within a cell.
        """
        cells = []
        while True:
            is_quoted = self._data.startswith(_QUOTE, self._position)
            cells.append(self._quoted() if is_quoted else self._unquoted(delimiter))
            if not self._data.startswith(delimiter, self._position):
                break
            self._position += 1
        if bytes(self._data[self._position :]) not in (b"", b"\n", b"\r\n"):
            raise RowError(
                "ROW_QUOTES", "a quote is closed within a cell; write quotes in quoted cells twice"
            )
        return cells

    def _unquoted(self, delimiter: bytes) -> bytes:
        end = self._data.find(delimiter, self._position)
        cell = bytes(self._data[self._position :]) if end < 0 else bytes(self._data[self._position : end])
        cell = _without_end(cell) if end < 0 else cell
        self._position += len(cell)
        return cell

    def _quoted(self) -> bytes:
        first = self._position + 1
        end = self._closing(first)
        self._position = end + 1
        return bytes(self._data[first:end]).replace(b'""', _QUOTE)

    def _closing(self, position: int) -> int:
        """Returns the position of the quote that closes a cell."""
        while True:
            found = self._data.find(_QUOTE, position)
            if found < 0:
                position = len(self._data)
                self._take_line()
            elif self._data.startswith(_QUOTE, found + 1):
                position = found + 2
            else:
                return found

    def _take_line(self) -> None:
        line = self._lines.next(self._max_bytes + 1 - len(self._data))
        self._data += line
        if not line or len(self._data) > self._max_bytes:
            raise RowError(
                "ROW_QUOTES", f"a quote opens and is not closed in the next {self._max_bytes} bytes"
            )
