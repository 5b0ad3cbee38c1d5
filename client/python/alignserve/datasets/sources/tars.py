"""Reads tars of samples, as webdataset and img2dataset write them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tarfile import TarInfo
from typing import Any, BinaryIO

from alignserve._suffixes import OPTIONAL_IMAGE_SUFFIXES
from alignserve.datasets.row import Row
from alignserve.datasets.source import BrokenSourceError, Cursor, SourceError
from alignserve.datasets.sources.columns import Chosen, listed
from alignserve.datasets.sources.files import FileError, digest_of, open_regular
from alignserve.datasets.sources.json_lines import kept_from, parsed
from alignserve.datasets.sources.keys import key_of_name
from alignserve.datasets.sources.lines import BOM
from alignserve.datasets.sources.options import SourceOptions
from alignserve.datasets.sources.rows import IMAGE, TEXT, RowBuilder, RowError
from alignserve.datasets.sources.tar_index import TarBroken, TarIndex, TarReader

TEXT_SUFFIXES = ("txt", "text", "caption")
_TEXT_NAMES = ("text", "caption")  # in the JSON of a sample
_METADATA = "json"
_BUFFER_BYTES = 4 << 10  # headers are read, and the members between them passed over
_PEEKED_MEMBERS = 300
_Members = dict[str, TarInfo]


@dataclass(frozen=True, slots=True)
class TarSamples:
    """The members of a sample that are read.

    Attributes:
        image_suffixes: Of members that are images, without the dot; a sample has one of them at most.
        text: The suffix of the member with the text, or a name in the sample's JSON; `None` takes the first
            of `txt`, `text` and `caption`.
    """

    image_suffixes: frozenset[str]
    text: str | None

    def reader(self, file: BinaryIO) -> TarReader:
        """Returns a reader of an open tar."""
        suffixes = (*self.image_suffixes, self.text or "")
        return TarReader(file, splits_at_first_dot=any("." in suffix for suffix in suffixes))


@dataclass(frozen=True, slots=True)
class TarFile:
    """A tar of samples.

    Members whose paths differ in their suffix only are a sample, and a sample is a row. The suffix is all
    behind the last dot of a name, so that `photo.1.jpg` and `photo.2.jpg` are two samples; if an image or
    text is asked for by a suffix with a dot in it, such as `seg.png`, it is all behind the first, as for
    webdataset. A row's place is the path without the suffix, below the tar's own, and a cursor is the number
    of samples before it, in the order of their first members. Members of a sample that lie apart are joined.

    A sample fails by itself if it has a member twice, two images, only an image of a kind that is not taken,
    or a link, a device or the like where the image or text should be. Members of other kinds are ignored.

    Only headers are read twice, and only members that are needed are read at all, after their size was
    checked.

    Attributes:
        name: The tar's path below the source.
        path: Of the tar.
        samples: The members of a sample that are read.
        builder: Makes the rows, of the columns `IMAGE` and `TEXT`.
        max_metadata_bytes: A larger JSON fails the row.
    """

    name: str
    path: Path
    samples: TarSamples
    builder: RowBuilder
    max_metadata_bytes: int

    def digest(self) -> str:
        return digest_of(self.path)

    def rows(self, start: Cursor = 0) -> Iterator[tuple[Row, Cursor]]:
        """Yields the rows, see `SourceFile`."""
        try:
            with open_regular(self.path, _BUFFER_BYTES) as file:
                reader = self.samples.reader(file)
                index = TarIndex.of(reader)
                for sample in range(start, len(index)):
                    yield self._row(reader, index.runs(sample)), sample + 1
        except (FileError, OSError) as error:
            raise BrokenSourceError(f"{self.path}: {error}") from error
        if index.broken is not None:
            raise BrokenSourceError(f"{self.path}: {index.broken}, after {len(index)} whole samples")

    def _row(self, reader: TarReader, runs: list[int]) -> Row:
        key, members, twice = _sample(reader, runs)
        place = f"{self.name}/{key_of_name(key)}"
        try:
            if twice is not None:
                raise RowError("MEMBER_TWICE", f"'{key}.{twice}' is in the tar twice")
            metadata = self._metadata(reader, members)
            values = {IMAGE: self._image(reader, members), TEXT: self._text(reader, members, metadata)}
        except RowError as error:
            return Row(place, failure=error.failure)
        return self.builder.build(place, values, kept_from(metadata, self.builder.kept))

    def _image(self, reader: TarReader, members: _Members) -> bytes | None:
        if self.builder.image is None:
            return None
        found = sorted(self.samples.image_suffixes.intersection(members))
        if len(found) > 1:
            raise RowError(
                "IMAGE_AMBIGUOUS", f"the sample has {' and '.join(found)}; choose one with image_column"
            )
        if found:
            return _content(reader, members, found[0], self.builder.limits.image_bytes, "IMAGE")
        if others := [suffix for suffix in members if f".{suffix}" in OPTIONAL_IMAGE_SUFFIXES]:
            raise RowError(
                "IMAGE_KIND_NOT_TAKEN", f"the sample's image is {others[0]}; convert it to JPEG or PNG"
            )
        return None

    def _text(self, reader: TarReader, members: _Members, metadata: Mapping[str, Any]) -> Any:
        if self.builder.text is None:
            return None
        asked = self.samples.text
        for suffix in TEXT_SUFFIXES if asked is None else (asked,):
            if suffix in members:
                content = _content(reader, members, suffix, self.builder.limits.text_bytes, "TEXT")
                return content.removeprefix(BOM)
        names = _TEXT_NAMES if asked is None else (asked,)
        return next((metadata[name] for name in names if name in metadata), None)

    def _metadata(self, reader: TarReader, members: _Members) -> dict[str, Any]:
        has_text = any(suffix in members for suffix in TEXT_SUFFIXES) or self.samples.text in members
        is_needed = self.builder.kept or (self.builder.text is not None and not has_text)
        if _METADATA not in members or not is_needed:
            return {}
        return parsed(
            _content(reader, members, _METADATA, self.max_metadata_bytes, "COLUMN").removeprefix(BOM) + b"\n"
        )


def samples_of(options: SourceOptions) -> TarSamples:
    """Returns what these options read of samples."""
    suffixes = options.image_suffixes if options.image_column is None else {options.image_column.lower()}
    return TarSamples(frozenset(suffix.removeprefix(".") for suffix in suffixes), options.text_column or None)


def chosen_in(path: Path, samples: TarSamples, options: SourceOptions) -> Chosen:
    """Returns what the first samples of a tar have; everything that is asked for, if none can be read.

    Raises:
        FileError: It cannot be read.
        SourceError: They have nothing that is asked for.
    """
    found = _suffixes_in(path, samples)
    texts = _text_names(samples)
    image = None if options.image_column == "" or samples.image_suffixes.isdisjoint(found) else IMAGE
    text = None if options.text_column == "" or texts.isdisjoint(found) else TEXT
    for part, asked, is_there in (
        ("image", options.image_column, image),
        ("text", options.text_column, text),
    ):
        if asked and found and is_there is None:
            raise SourceError(
                f"{path}: {part}s should be in the members '{asked}'; there are {listed(found)}"
            )
    if found and image is None and text is None:
        raise SourceError(
            f"{path}: no member was recognized as an image or a text among {listed(found)}; name its suffix "
            "with image_column or text_column"
        )
    return Chosen(image, text, None, ())


def _text_names(samples: TarSamples) -> set[str]:
    suffixes = TEXT_SUFFIXES if samples.text is None else (samples.text,)
    names = _TEXT_NAMES if samples.text is None else (samples.text,)
    return {*suffixes, *(f"{_METADATA}:{name}" for name in names)}


def _suffixes_in(path: Path, samples: TarSamples) -> list[str]:
    """Returns the suffixes of the first members of a tar, and `json:NAME` for the names in the first JSON."""
    found: dict[str, None] = {}
    with open_regular(path, _BUFFER_BYTES) as file:
        reader = samples.reader(file)
        try:
            for _, member in islice(reader.members(), _PEEKED_MEMBERS):
                if member.suffix == _METADATA and _METADATA not in found:
                    found.update(dict.fromkeys(_names_in(reader, member.info)))
                found[member.suffix] = None
        except TarBroken:
            pass
    return list(found)


def _names_in(reader: TarReader, info: TarInfo) -> list[str]:
    try:
        content = _content(reader, {_METADATA: info}, _METADATA, 1 << 20, "COLUMN")
        return [f"{_METADATA}:{name}" for name in parsed(content.removeprefix(BOM) + b"\n")]
    except RowError:
        return []


def _sample(reader: TarReader, runs: list[int]) -> tuple[str, _Members, str | None]:
    """Returns the key of a sample, its members by suffix, and a suffix that it has twice."""
    members: _Members = {}
    key = None
    for run in runs:
        for member in _members_from(reader, run):
            if key is None:
                key = member.key
            if member.key != key:
                break
            if member.suffix in members:
                return key, members, member.suffix
            members[member.suffix] = member.info
    assert key is not None  # noqa: S101 — a run has a member
    return key, members, None


def _members_from(reader: TarReader, offset: int) -> Iterator[Any]:
    """Yields the members from a position on; the index has noted where the tar breaks off."""
    try:
        for _, member in reader.members(offset):
            yield member
    except TarBroken:
        return


def _content(reader: TarReader, members: _Members, suffix: str, max_bytes: int, part: str) -> bytes:
    info = members[suffix]
    if not info.isreg():
        kind = "a link" if info.islnk() or info.issym() else "not a file"
        raise RowError(f"{part}_NOT_A_FILE", f"'{info.name}' is {kind} in the tar; pack the file itself")
    if info.size > max_bytes:
        raise RowError(f"{part}_TOO_LARGE", f"'{info.name}' has {info.size} bytes, limit {max_bytes}")
    try:
        return reader.content(info)
    except (tarfile.TarError, ValueError) as error:
        raise RowError(f"{part}_UNREADABLE", f"'{info.name}': {error}") from error
