"""Reads tars of samples, as webdataset and img2dataset write them."""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import dataclass
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
        late_suffixes: Of members, and `json:NAME`, that would have been read if the first members had shown
            them; a sample with one of them fails, since its image or text would be left out.
    """

    name: str
    path: Path
    samples: TarSamples
    builder: RowBuilder
    max_metadata_bytes: int
    late_suffixes: frozenset[str] = frozenset()

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
            self._check_suffixes(members)
            metadata = self._metadata(reader, members)
            self._check_names(metadata)
            values = {IMAGE: self._image(reader, members), TEXT: self._text(reader, members, metadata)}
        except RowError as error:
            return Row(place, failure=error.failure)
        return self.builder.build(place, values, kept_from(metadata, self.builder.kept))

    def _check_suffixes(self, members: _Members) -> None:
        late = next((suffix for suffix in members if suffix in self.late_suffixes), None)
        if late is not None:
            raise _late(f"member '{late}'")

    def _check_names(self, metadata: Mapping[str, Any]) -> None:
        late = next(
            (name for name in metadata if f"{_METADATA}:{name}" in self.late_suffixes and metadata[name]),
            None,
        )
        if late is not None:
            raise _late(f"name '{late}' in the member '{_METADATA}'")

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
        reads_text = self.builder.text is not None or self.late_suffixes
        is_needed = self.builder.kept or (reads_text and not has_text)
        if _METADATA not in members or not is_needed:
            return {}
        return parsed(
            _content(reader, members, _METADATA, self.max_metadata_bytes, "COLUMN").removeprefix(BOM) + b"\n"
        )


def samples_of(options: SourceOptions) -> TarSamples:
    """Returns what these options read of samples."""
    suffixes = options.image_suffixes if options.image_column is None else {options.image_column.lower()}
    return TarSamples(frozenset(suffix.removeprefix(".") for suffix in suffixes), options.text_column or None)


def chosen_in(path: Path, samples: TarSamples, options: SourceOptions) -> tuple[list[str], Chosen]:
    """Returns the suffixes in a tar, as far as it was looked at, and what of them is read.

    Raises:
        FileError: It cannot be read.
        SourceError: It has files, but neither images nor texts.
    """
    texts = _text_names(samples)
    wanted = (samples.image_suffixes if options.image_column else (), texts if options.text_column else ())
    found = _suffixes_in(path, samples, [set(names) for names in wanted if names])
    image = None if options.image_column == "" or samples.image_suffixes.isdisjoint(found) else IMAGE
    text = None if options.text_column == "" or texts.isdisjoint(found) else TEXT
    if found and image is None and text is None and not (options.image_column or options.text_column):
        raise SourceError(
            f"{path}: no member was recognized as an image or a text among {listed(found)}; name its suffix "
            "with image_column or text_column"
        )
    return found, Chosen(image, text, None, ())


def late_suffixes(chosen: Chosen, samples: TarSamples, options: SourceOptions) -> frozenset[str]:
    """Returns what would have been chosen, had the first members shown it; see `TarFile`."""
    images = samples.image_suffixes if chosen.image is None and options.image_column is None else ()
    texts = _text_names(samples) if chosen.text is None and options.text_column is None else ()
    return frozenset((*images, *texts))


def _late(what: str) -> RowError:
    return RowError(
        "COLUMN_LATE",
        f"no tar has a {what} among its first {_PEEKED_MEMBERS} members; name it with image_column or "
        "text_column",
    )


def _text_names(samples: TarSamples) -> set[str]:
    suffixes = TEXT_SUFFIXES if samples.text is None else (samples.text,)
    names = _TEXT_NAMES if samples.text is None else (samples.text,)
    return {*suffixes, *(f"{_METADATA}:{name}" for name in names)}


def _suffixes_in(path: Path, samples: TarSamples, wanted: Collection[Set[str]]) -> list[str]:
    """Returns the suffixes of the first members of a tar, and `json:NAME` for the names in their JSON.

    Args:
        path: Of the tar.
        samples: How its members are read.
        wanted: Sets of which one each is looked for in all members if the first ones lack it.

    Raises:
        FileError: It cannot be read.
        SourceError: It has files, and no sample.
    """
    found: dict[str, None] = {}
    with open_regular(path, _BUFFER_BYTES) as file:
        reader = samples.reader(file)
        try:
            texts = _text_names(samples)
            for count, (_, member) in enumerate(reader.members()):
                if count >= _PEEKED_MEMBERS and not any(map(found.keys().isdisjoint, wanted)):
                    break
                if member.suffix == _METADATA and texts.isdisjoint(found):
                    found.update(dict.fromkeys(_names_in(reader, member.info)))
                found[member.suffix] = None
        except TarBroken:
            return list(found)
    if not found and reader.left_out is not None:
        raise SourceError(
            f"{path}: no member has a name that makes it part of a sample, such as 000017.jpg; there is "
            f"{reader.left_out!r}"
        )
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
