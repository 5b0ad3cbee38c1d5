"""Reads JSON Lines: one object per line."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignserve.datasets.row import Row
from alignserve.datasets.source import BrokenSourceError, Cursor
from alignserve.datasets.sources.files import FileError, digest_of, open_regular
from alignserve.datasets.sources.keys import is_unicode
from alignserve.datasets.sources.lines import BOM, Lines
from alignserve.datasets.sources.rows import RowBuilder, RowError, decoded, failed, shown

PEEKED_LINES = 100
"""Lines in which the names of a file are looked for."""


class _Number(str):
    """A number as the file writes it, so that 1.10 and 1e999 stay what they are."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class JsonLinesFile:
    """A file with one JSON object per line.

    A row's place is the number of its line, from 1, and a cursor is the position behind a line. Blank lines
    are not rows. A line fails by itself if it is longer than the limit (it is skipped in constant memory), is
    not UTF-8, not JSON, not an object, has a name twice, or is cut off; a last line without a line feed is a
    row if it is whole.

    Attributes:
        name: The file's path below the source.
        path: Of the file.
        builder: Makes the rows; kept columns are texts, see `as_text`.
        max_line_bytes: Longer lines fail.
        late_names: Well-known names of columns that the first lines lack; a line with one of them fails,
            since its image or text would be left out.
    """

    name: str
    path: Path
    builder: RowBuilder
    max_line_bytes: int
    late_names: frozenset[str] = frozenset()

    def digest(self) -> str:
        return digest_of(self.path)

    def rows(self, start: Cursor = 0) -> Iterator[tuple[Row, Cursor]]:
        """Yields the rows, see `SourceFile`."""
        try:
            with open_regular(self.path) as file:
                lines = Lines(file, start)
                while True:
                    number = lines.number
                    if not (line := lines.next(self.max_line_bytes + 1)):
                        return
                    if (row := self._row(line, number, lines)) is not None:
                        yield row, lines.position
        except (FileError, OSError) as error:
            raise BrokenSourceError(f"{self.path}: {error}") from error

    def _row(self, line: bytes, number: int, lines: Lines) -> Row | None:
        place = f"{self.name}:{number}"
        if len(line) > self.max_line_bytes and not line.endswith(b"\n"):
            lines.finish_line()
            return failed(place, "ROW_TOO_LARGE", f"the line has more than {self.max_line_bytes} bytes")
        content = line.removeprefix(BOM) if number == 1 else line
        if not content.strip():
            return None
        try:
            values = parsed(content)
            self._check_names(values)
        except RowError as error:
            return Row(place, failure=error.failure)
        return self.builder.build(place, values, kept_from(values, self.builder.kept))

    def _check_names(self, values: Mapping[str, Any]) -> None:
        late = next((name for name in values if name.lower() in self.late_names and values[name]), None)
        if late is not None:
            raise RowError(
                "COLUMN_LATE",
                f"the first {PEEKED_LINES} lines have no column {shown(late)}; name it with image_column or "
                "text_column",
            )


def names_in(path: Path, max_line_bytes: int, wanted: Collection[str] = ()) -> list[str]:
    """Returns the names in the objects of the first lines of a file, in their order.

    Args:
        path: Of the file.
        max_line_bytes: Longer lines are not looked at.
        wanted: Names that are looked for in all lines if the first ones lack them.

    Raises:
        FileError: The file cannot be read.
    """
    names: dict[str, None] = {}
    with open_regular(path) as file:
        lines = Lines(file, 0)
        count = 0
        while count < PEEKED_LINES or not names.keys() >= set(wanted):
            if not (line := lines.next(max_line_bytes)):
                break
            count += 1
            with suppress(RowError):
                found = parsed(line.removeprefix(BOM))
                names.update(dict.fromkeys(found if count <= PEEKED_LINES else found.keys() & set(wanted)))
    return list(names)


def parsed(line: bytes) -> dict[str, Any]:
    """Returns the object of a line; numbers, NaN and Infinity as they are written.

    Raises:
        RowError: The line is not an object.
    """
    text = decoded(line, "JSON_INVALID")
    try:
        value = json.loads(
            text,
            parse_float=_Number,
            parse_int=_Number,
            parse_constant=_Number,
            object_pairs_hook=_object,
        )
    except (ValueError, RecursionError) as error:
        cut = (
            "; it is the last line and has no end, so the file may be cut off"
            if not line.endswith(b"\n")
            else ""
        )
        raise RowError("JSON_INVALID", f"{shown(text)} is not JSON: {error}{cut}") from error
    if not isinstance(value, dict):
        raise RowError("JSON_NOT_AN_OBJECT", f"{shown(text)} is not an object")
    return value


def as_text(value: object) -> str | None:
    """Returns a JSON value as a text: a string as it is, null as `None`, anything else as JSON."""
    if value is None or type(value) is str:
        return value
    return _as_json(value)


def kept_from(values: Mapping[str, Any], kept: Iterable[str]) -> dict[str, str | RowError | None]:
    """Returns the kept columns of an object as texts; a value that cannot be one is an error."""
    return {name: _text_or_error(values.get(name)) for name in kept}


def _text_or_error(value: object) -> str | RowError | None:
    try:
        text = as_text(value)
    except RecursionError:
        return RowError("COLUMN_INVALID", "its value is nested too deeply")
    if text is not None and not is_unicode(text):
        return RowError("COLUMN_INVALID", f"{shown(text)} has a lone surrogate")
    return text


def _as_json(value: object) -> str:
    if isinstance(value, _Number):
        return value
    if isinstance(value, list):
        return f"[{', '.join(map(_as_json, value))}]"
    if isinstance(value, dict):
        return (
            f"{{{', '.join(f'{_as_json(str(name))}: {_as_json(inner)}' for name, inner in value.items())}}}"
        )
    return json.dumps(value, ensure_ascii=False)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowError("JSON_NAME_TWICE", f"the name {shown(twice)} comes twice in one object")
    return values
