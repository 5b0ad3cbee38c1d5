"""TIFF: reads the first directory; the decoders get a copy with only the tags that affect pixels.

Each file has two decoders, Pillow and libtiff, which read it in turn.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import NamedTuple

from alignserve_server.errors import ImageUnreadable
from alignserve_server.model.preprocessing.image_files.orientation import orientation_of
from alignserve_server.model.preprocessing.image_files.picture import (
    CheckSize,
    Picture,
    check_count,
    unreadable,
)

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_MAX_ENTRIES = 1024  # in a directory; cameras and maps have some 60
_MAX_SAMPLES = 8

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _ORIENTATION, _SAMPLES, _PLANES, _XMP = (
    *(256, 257, 258, 259, 274, 277, 284, 700),
)
_STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_BYTES = 273, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
# The tags above except the last two of the first line; photometric interpretation, bit order, fax options,
# predictor, palette, inks, extra samples, sample format, JPEG tables, and four tags of YCbCr.
_PIXEL_TAGS = {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _PLANES}
_PIXEL_TAGS |= {_STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_BYTES}
_PIXEL_TAGS |= {_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES}
_PIXEL_TAGS |= {262, 266, 292, 293, 317, 320, 332, 338, 339, 347, 529, 530, 531, 532}

_UNIT_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_MAX_TAG_BYTES = 1 << 20  # a 16-bit palette has 384 kB

# None, fax, LZW, JPEG, Deflate and PackBits: each additional one is a decoder that untrusted bytes reach. Old
# JPEG (6) has many invalid variants; LZMA, Zstandard, WebP and JPEG 2000 are rare in TIFF.
_RAW = 1
_COMPRESSIONS = {_RAW, 2, 3, 4, 5, 7, 8, 32773, 32946}


class _Entry(NamedTuple):
    tag: int
    kind: int
    length: int  # number of values
    data: int  # where the value is
    raw: bytes

    @property
    def size(self) -> int:
        return self.length * _UNIT_BYTES[self.kind]


class _Layout(NamedTuple):
    order: str
    start: struct.Struct  # of the file: where the directory is
    tags: struct.Struct
    entry: struct.Struct
    next: struct.Struct
    inline_bytes: int

    @classmethod
    def of(cls, content: bytes) -> _Layout:
        order = "<" if content.startswith(b"II") else ">"
        if b"+" in content[:4]:  # BigTIFF, which declares 8-byte offsets
            names, inline_bytes = ("4sHHQ", "Q", "HHQ8s", "Q"), 8
        else:
            names, inline_bytes = ("4sI", "H", "HHI4s", "I"), 4
        start, count, entry, following = (struct.Struct(order + name) for name in names)
        return cls(order, start, count, entry, following, inline_bytes)


def read(content: bytes, check_size: CheckSize) -> Picture:
    """Reads the first directory, and returns a file with only its pixels and their tags."""
    layout = _Layout.of(content)
    *header, directory = layout.start.unpack_from(content)
    if header[1:] not in ([], [8, 0]):
        raise unreadable()
    entries: dict[int, _Entry] = {}
    for entry in _entries(content, layout, directory):
        entries.setdefault(entry.tag, entry)  # both decoders use the first of duplicate tags
    tags = _Tags(content, layout.order, entries)
    width, height = tags.number(_WIDTH), tags.number(_HEIGHT)
    check_size(width, height)
    _check_compression(tags.number(_COMPRESSION, _RAW))
    _check_parts(tags, width, height, check_size)
    kept = [entries[tag].raw for tag in sorted(entries.keys() & _PIXEL_TAGS)]
    return Picture(
        "TIFF", width, height, _file(content, layout, header, kept), _orientation(tags), needs_process=True
    )


def _entries(content: bytes, layout: _Layout, directory: int) -> Iterator[_Entry]:
    (count,) = layout.tags.unpack_from(content, directory)
    check_count("tags", count, _MAX_ENTRIES)
    position = directory + layout.tags.size
    for _ in range(count):
        tag, kind, length, value = layout.entry.unpack_from(content, position)
        data = position + layout.entry.size - layout.inline_bytes
        size = length * _UNIT_BYTES.get(kind, 0)
        if size > layout.inline_bytes:
            (data,) = layout.next.unpack(value)
        if kind in _UNIT_BYTES and data + size <= len(content):
            yield _Entry(tag, kind, length, data, content[position : position + layout.entry.size])
        elif tag in _PIXEL_TAGS:
            raise unreadable()
        position += layout.entry.size


class _Tags:
    def __init__(self, content: bytes, order: str, entries: dict[int, _Entry]) -> None:
        self._content = content
        self._order = order
        self._entries = entries

    @property
    def file_bytes(self) -> int:
        return len(self._content)

    def __contains__(self, tag: int) -> bool:
        return tag in self._entries

    def number(self, tag: int, default: int | None = None) -> int:
        """Returns the first number of a tag, or the default; raises ImageUnreadable if there is neither."""
        if default is not None and tag not in self._entries:
            return default
        return self.numbers(tag)[0]

    def numbers(self, tag: int) -> tuple[int, ...]:
        entry = self._entries.get(tag)
        if entry is None or entry.kind not in _INTEGERS or not 0 < entry.size <= _MAX_TAG_BYTES:
            raise unreadable()
        return struct.unpack_from(
            f"{self._order}{entry.length}{_INTEGERS[entry.kind]}", self._content, entry.data
        )

    def data(self, tag: int) -> bytes:
        """Returns the bytes of a tag; empty if it is missing."""
        entry = self._entries.get(tag)
        return self._content[entry.data : entry.data + entry.size] if entry else b""


def _check_compression(method: int) -> None:
    if method not in _COMPRESSIONS:
        raise ImageUnreadable(
            f"image is TIFF with compression {method}, which this server does not read; save it with LZW, "
            "Deflate or JPEG compression, or convert it to PNG"
        )


def _check_parts(tags: _Tags, width: int, height: int, check_size: CheckSize) -> None:
    """Checks the number and sizes of strips or tiles, and that they do not overlap."""
    samples = tags.number(_SAMPLES, 1)
    planes = samples if tags.number(_PLANES, 1) != 1 else 1
    if not 1 <= samples <= _MAX_SAMPLES:
        raise unreadable()
    if _STRIP_OFFSETS in tags:
        rows = min(tags.number(_ROWS_PER_STRIP, height), height)
        across, down = 1, math.ceil(height / max(1, rows))
        offsets, lengths = _STRIP_OFFSETS, _STRIP_BYTES
    else:
        tile_width, tile_height = tags.number(_TILE_WIDTH), tags.number(_TILE_HEIGHT)
        check_size(tile_width, tile_height)
        across, down = math.ceil(width / tile_width), math.ceil(height / tile_height)
        # Each tile is decoded completely, however little of it is in the picture.
        check_size(max(width, across * tile_width), max(height, down * tile_height))
        offsets, lengths = _TILE_OFFSETS, _TILE_BYTES
    parts = across * down * planes
    check_count("strips or tiles", parts)
    if len(tags.numbers(offsets)) != parts:
        raise unreadable()
    if lengths in tags or parts > 1:  # to libtiff, a single strip extends to the end of the file
        sizes = tags.numbers(lengths)
        if len(sizes) != parts or sum(sizes) > tags.file_bytes:
            raise unreadable()


def _file(content: bytes, layout: _Layout, header: list[object], entries: list[bytes]) -> bytes:
    """Appends a directory to the file, so that all existing offsets stay valid."""
    padding = bytes(len(content) % 2)
    directory = layout.tags.pack(len(entries)) + b"".join(entries) + layout.next.pack(0)
    start = layout.start.pack(*header, len(content) + len(padding))
    return b"".join([start, memoryview(content)[len(start) :], padding, directory])


def _orientation(tags: _Tags) -> int | None:
    if _ORIENTATION in tags:
        return tags.number(_ORIENTATION)
    return orientation_of(b"", tags.data(_XMP))
