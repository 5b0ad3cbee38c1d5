"""JPEG: reads the segments up to the first scan; Pillow walks all of them in Python and decodes few."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from alignserve_server.model.preprocessing.image_files.orientation import orientation_of
from alignserve_server.model.preprocessing.image_files.picture import (
    CheckSize,
    Picture,
    check_count,
    unreadable,
)

SIGNATURE = b"\xff\xd8\xff"

# Each limit is ten times what cameras and editors write.
_MAX_SCANS = 100  # each passes over all pixels (10 ms for 25 million), and can be only 60 bytes long
_MAX_TABLES = 1024  # segments that a decoder needs before the first scan; usually a dozen
_MAX_QUANTIZATION_BYTES = 1 << 14  # some 250 tables; usually at most four

_MAX_EXIF_SEGMENTS = 16  # of 64 kB; cameras write one, which starts with the orientation

_SCAN, _END, _QUANTIZATION = 0xDA, 0xD9, 0xDB
_FRAMES = {*range(0xC0, 0xD0), 0xDE} - {0xC4, 0xC8, 0xCC}  # frame headers have the size
# Application data and comments, except those that say how colours are coded: JFIF's APP0, Adobe's APP14.
_METADATA = {*range(0xE1, 0xEE), 0xEF, 0xFE}
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_APP1 = 0xE1

_MARKER = re.compile(rb"\xff[\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe]")  # the end, and all segments with a length
_START = b"\xff\xd8"
_EMPTY_COMMENT = b"\xff\xfe\0\2"
_SCAN_MARKER = b"\xff\xda"
_WINDOW = 1 << 16  # bytes searched at once: a search lets no other thread run


class _Segment(NamedTuple):
    marker: int
    start: int  # of its marker
    body: int
    end: int
    skipped: int  # bytes skipped before it


def read(content: bytes, check_size: CheckSize) -> Picture:
    """Reads the header; refuses files that would keep a decoder busy."""
    size: tuple[int, int] | None = None
    parts = tables = quantization_bytes = 0
    exif: list[bytes] = []
    xmp = b""
    dropped: list[tuple[int, int]] = []
    for segment in _segments(content):
        parts += 1 + segment.skipped  # Pillow skips padding one byte at a time
        check_count("segments and padding", parts)
        body = slice(segment.body, segment.end)
        if segment.marker == _SCAN:
            break
        if segment.marker in _METADATA and segment.body <= segment.end <= len(content):
            dropped.append((segment.start, segment.end))
            if segment.marker == _APP1 and content.startswith(_EXIF, segment.body):
                if len(exif) < _MAX_EXIF_SEGMENTS:
                    exif.append(content[body] if not exif else content[body][len(_EXIF) :])
            elif segment.marker == _APP1 and content.startswith(_XMP, segment.body):
                xmp = content[body][len(_XMP) :]
            continue
        tables += 1
        check_count("tables", tables, _MAX_TABLES)
        if segment.marker == _QUANTIZATION:
            quantization_bytes += segment.end - segment.body
            check_count("bytes of quantization tables", quantization_bytes, _MAX_QUANTIZATION_BYTES)
        elif segment.marker in _FRAMES:
            if size is not None:
                raise unreadable()  # a picture has only one size
            _, height, width = struct.unpack_from(">BHH", content, segment.body)
            check_size(width, height)
            size = width, height
    else:
        raise unreadable()
    if size is None:
        raise unreadable()
    _check_scans(content, segment.start)
    orientation = orientation_of(b"".join(exif), xmp)
    return Picture("JPEG", *size, _without(content, dropped), orientation)


def _check_scans(content: bytes, first: int) -> None:
    # Counting two bytes is fast, but also finds them in metadata, and in the video that a phone appends. A
    # low count is enough to accept a file; to refuse it, the segments themselves are counted.
    if content.count(_SCAN_MARKER, first) <= _MAX_SCANS:
        return
    scans = 0
    for parts, segment in enumerate(_segments(content, first)):
        if segment.marker == _END:
            return
        scans += segment.marker == _SCAN
        check_count("scans", scans, _MAX_SCANS)
        check_count("segments", parts)


def _segments(content: bytes, end: int = 0) -> Iterator[_Segment]:
    """Yields the segments from a position on, as libjpeg finds them, and an end marker after the last."""
    while (start := _next_marker(content, end)) is not None:
        marker, body = content[start + 1], start + 2
        skipped, end = start - end, body
        if marker != _END:
            end += max(2, int.from_bytes(content[body : body + 2], "big"))
            body += 2
        yield _Segment(marker, start, body, end, skipped)
    yield _Segment(_END, len(content), len(content), len(content), max(0, len(content) - end))


def _next_marker(content: bytes, start: int) -> int | None:
    while start < len(content):
        # One more byte, to find a marker across the boundary.
        if found := _MARKER.search(content, start, start + _WINDOW + 1):
            return found.start()
        start += _WINDOW
    return None


def _without(content: bytes, dropped: Sequence[tuple[int, int]]) -> bytes:
    """Returns the content without the given ranges, which are in order.

    Inserts an empty comment first: decoders skip stray bytes anywhere except there.
    """
    if not dropped:
        return content
    view = memoryview(content)
    position, kept = len(_START), [memoryview(_START + _EMPTY_COMMENT)]
    for start, end in dropped:
        kept.append(view[position:start])
        position = end
    return b"".join([*kept, view[position:]])
