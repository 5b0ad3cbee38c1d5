"""WEBP: reads the chunks of the first frame, and its orientation."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from alignserve_server.model.preprocessing.image_files.orientation import orientation_of
from alignserve_server.model.preprocessing.image_files.picture import (
    CheckSize,
    Picture,
    check_count,
    unreadable,
)

_CHUNK = struct.Struct("<4sI")  # kind, length of the data, which is padded to even length
_SIGNATURE_BYTES = 12
_EXTENDED, _LOSSY, _LOSSLESS = b"VP8X", b"VP8 ", b"VP8L"
_LOSSY_START = b"\x9d\x01\x2a"
_LOSSLESS_START = 0x2F
_HAS_EXIF, _HAS_XMP, _IS_ANIMATED = 8, 4, 2
_MAX_CHUNKS = 8192  # each frame has one
_MAX_SIDE = (1 << 14) - 1  # of a frame
_FRAME_BYTES = 16  # header before a frame's own chunks


class _Chunk(NamedTuple):
    kind: bytes
    data: memoryview
    padding: bytes  # kept as in the file: the lossless decoder reads it as the end of its stream

    def encoded(self) -> tuple[bytes, memoryview, bytes]:
        return (
            _CHUNK.pack(self.kind, len(self.data)),
            self.data,
            self.padding.ljust(len(self.data) % 2, b"\0"),
        )


def is_webp(content: bytes) -> bool:
    """Returns whether these are the first bytes of a WEBP file."""
    return content.startswith(b"RIFF") and content[8:_SIGNATURE_BYTES] == b"WEBP"


def read(content: bytes, check_size: CheckSize) -> Picture:
    """Reads the chunks. The size is that of the canvas; libwebp allocates several canvases."""
    chunks = _chunks(content)
    first = next(chunks, None)
    if first is None:
        raise unreadable()
    width, height = _size(first)
    check_size(width, height)
    orientation, kept = None, [first]
    if first.kind == _EXTENDED:
        others = list(chunks)
        orientation = _orientation(first.data[0], others)
        kept += _first_frame(first.data[0], others)
    return Picture("WEBP", width, height, _file(kept), orientation, holds_gil=True)


def _chunks(content: bytes) -> Iterator[_Chunk]:
    view = memoryview(content)
    end = _CHUNK.size + _CHUNK.unpack_from(content)[1]
    if end > len(content):
        raise unreadable()
    position, parts = _SIGNATURE_BYTES, 0
    while position + _CHUNK.size <= end:
        kind, length = _CHUNK.unpack_from(content, position)
        position += _CHUNK.size
        parts += 1
        check_count("chunks", parts, _MAX_CHUNKS)
        if position + length > end:
            raise unreadable()
        data = view[position : position + length]
        position += length
        padding = content[position : position + length % 2]
        position += length % 2
        yield _Chunk(kind, data, padding)


def _size(chunk: _Chunk) -> tuple[int, int]:
    data = chunk.data
    if chunk.kind == _EXTENDED and len(data) >= 10:
        return int.from_bytes(data[4:7], "little") + 1, int.from_bytes(data[7:10], "little") + 1
    if chunk.kind == _LOSSY and data[3:6] == _LOSSY_START and len(data) >= 10:
        width, height = struct.unpack_from("<HH", data, 6)
        return width & _MAX_SIDE, height & _MAX_SIDE
    if chunk.kind == _LOSSLESS and len(data) >= 5 and data[0] == _LOSSLESS_START:
        (bits,) = struct.unpack_from("<I", data, 1)
        return (bits & _MAX_SIDE) + 1, (bits >> 14 & _MAX_SIDE) + 1
    raise unreadable()


def _file(chunks: list[_Chunk]) -> bytes:
    parts: list[bytes | memoryview] = [b"WEBP"]
    for chunk in chunks:
        parts += chunk.encoded()
    return b"".join([_CHUNK.pack(b"RIFF", sum(map(len, parts))), *parts])


def _first_frame(flags: int, chunks: list[_Chunk]) -> list[_Chunk]:
    if flags & _IS_ANIMATED:
        animation = (chunk for chunk in chunks if chunk.kind == b"ANIM")
        frames = (chunk for chunk in chunks if chunk.kind == b"ANMF" and _has_picture(chunk.data))
        return [*islice(animation, 1), *islice(frames, 1)]
    frame = []
    for chunk in chunks:
        if chunk.kind in (b"ALPH", _LOSSY, _LOSSLESS):
            frame.append(chunk)
        if chunk.kind in (_LOSSY, _LOSSLESS):
            break
    return frame


def _has_picture(frame: memoryview) -> bool:
    """Returns whether a frame has more than its header; libwebp skips frames that do not."""
    position = _FRAME_BYTES
    kind, length = _CHUNK.unpack_from(frame, position) if len(frame) >= position + _CHUNK.size else (b"", 0)
    if kind == b"ALPH":
        position += _CHUNK.size + length + length % 2
        kind = bytes(frame[position : position + len(kind)])
    return kind in (_LOSSY, _LOSSLESS)


def _orientation(flags: int, chunks: list[_Chunk]) -> int | None:
    firsts = {chunk.kind: chunk.data for chunk in reversed(chunks)}
    exif = bytes(firsts.get(b"EXIF", b"")) if flags & _HAS_EXIF else b""
    xmp = bytes(firsts.get(b"XMP ", b"")) if flags & _HAS_XMP else b""
    return orientation_of(exif, xmp)
