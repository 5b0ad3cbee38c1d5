"""PNG: reads the critical chunks, and from other chunks only the orientation; joins the data chunks."""

from __future__ import annotations

import re
import struct
import zlib
from itertools import takewhile
from typing import NamedTuple

from alignserve_server.model.preprocessing.image_files.orientation import orientation_of
from alignserve_server.model.preprocessing.image_files.picture import (
    CheckSize,
    Picture,
    check_count,
    unreadable,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_MAX_METADATA = 256  # chunks; ten times what editors write
_MAX_TEXT_BYTES = 1 << 20  # inflated; Pillow's own limit

_CHUNK = struct.Struct(">I4s")  # length of the data, kind; data and a checksum follow
_SIZE = struct.Struct(">II")  # the first two fields of the header
_CHECKSUM = struct.Struct(">I")
_HEADER, _DATA, _END = b"IHDR", b"IDAT", b"IEND"
_KIND = re.compile(rb"\w{4}")  # only letters in the standard; Pillow is less strict
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")

_EXIF = b"eXIf"
_RAW_EXIF = b"Raw profile type exif"  # ImageMagick's form, in hexadecimal after three header lines
_XMP = b"XML:com.adobe.xmp"
_MAX_KEYWORD_BYTES = 80  # including the terminating zero


class _Chunk(NamedTuple):
    kind: bytes
    start: int  # of its length
    data: int
    end: int  # of the data, whole or not

    @property
    def is_critical(self) -> bool:
        return self.kind[:1].isupper()


def read(content: bytes, check_size: CheckSize) -> Picture:
    """Reads the chunks; refuses files that would keep a decoder busy."""
    chunks = _chunks(content)
    check_count("metadata chunks", sum(map(_is_metadata, chunks)), _MAX_METADATA)
    first = next((number for number, chunk in enumerate(chunks) if chunk.kind == _DATA), None)
    if first is None:
        raise unreadable()
    data = list(takewhile(lambda chunk: chunk.kind == _DATA, chunks[first:]))
    before, behind = chunks[:first], chunks[first + len(data) :]
    critical = [chunk for chunk in before if chunk.is_critical]
    check_count("critical chunks", len(critical), _MAX_METADATA)
    width, height = _size(content, critical)
    check_size(width, height)
    if any(chunk.kind == b"acTL" for chunk in before):  # Pillow ignores it after the first frame
        behind = list(takewhile(lambda chunk: chunk.kind != b"fcTL", behind))
    orientation = orientation_of(*_exif_and_xmp(content, before + behind))
    return Picture("PNG", width, height, _file(content, critical, data), orientation)


def _chunks(content: bytes) -> list[_Chunk]:
    """Returns the chunks up to the end of the picture, or to the first invalid one."""
    chunks: list[_Chunk] = []
    start = len(SIGNATURE)
    while start + _CHUNK.size <= len(content):
        length, kind = _CHUNK.unpack_from(content, start)
        if kind == _END or not _KIND.fullmatch(kind):
            break
        data = start + _CHUNK.size
        chunks.append(_Chunk(kind, start, data, min(data + length, len(content))))
        check_count("chunks", len(chunks))
        start = data + length + _CHECKSUM.size
    return chunks


def _is_metadata(chunk: _Chunk) -> bool:
    return not chunk.is_critical and chunk.kind not in _ANIMATION


def _size(content: bytes, critical: list[_Chunk]) -> tuple[int, int]:
    headers = [chunk for chunk in critical if chunk.kind == _HEADER]
    if len(headers) != 1 or headers[0].end - headers[0].data < _SIZE.size:
        raise unreadable()
    width, height = _SIZE.unpack_from(content, headers[0].data)
    return width, height


def _file(content: bytes, critical: list[_Chunk], data: list[_Chunk]) -> bytes:
    """Builds a file with only the picture; Pillow verifies all checksums except those of the data."""
    view = memoryview(content)
    length = sum(chunk.end - chunk.data for chunk in data)
    return b"".join(
        [
            SIGNATURE,
            *(view[chunk.start : chunk.end + _CHECKSUM.size] for chunk in critical),
            _CHUNK.pack(length, _DATA),
            *(view[chunk.data : chunk.end] for chunk in data),
            bytes(_CHECKSUM.size),  # not verified: zlib has its own checksum
            _CHUNK.pack(0, _END) + _CHECKSUM.pack(zlib.crc32(_END)),
        ]
    )


def _exif_and_xmp(content: bytes, chunks: list[_Chunk]) -> tuple[bytes, bytes]:
    """Returns EXIF and XMP, each empty if missing or corrupt; the last of several is used."""
    found: dict[bytes, _Chunk] = {}
    for chunk in chunks:
        if chunk.kind == b"eXIf":
            found[_EXIF] = chunk
        elif chunk.kind in _TEXTS:
            keyword = content[chunk.data : min(chunk.end, chunk.data + _MAX_KEYWORD_BYTES)].split(b"\0", 1)[0]
            if keyword in (_RAW_EXIF, _XMP):
                found[keyword] = chunk
    if _EXIF in found:
        exif = _checked(content, found[_EXIF])
    else:
        exif = _from_hexadecimal(_text(content, found.get(_RAW_EXIF)))
    return exif, _text(content, found.get(_XMP))


def _checked(content: bytes, chunk: _Chunk) -> bytes:
    """Returns a chunk's data, or no bytes if the checksum is wrong."""
    data = content[chunk.data : chunk.end]
    checksum = content[chunk.end : chunk.end + _CHECKSUM.size]
    return data if checksum == _CHECKSUM.pack(zlib.crc32(data, zlib.crc32(chunk.kind))) else b""


def _text(content: bytes, chunk: _Chunk | None) -> bytes:
    """Returns the text of a chunk, or no bytes if it is corrupt or too large."""
    if chunk is None:
        return b""
    data = _checked(content, chunk)
    start = data.find(b"\0") + 1
    is_compressed = chunk.kind == b"zTXt"
    if chunk.kind == b"iTXt":
        is_compressed = data[start : start + 1] != b"\0"
        start = (
            data.find(b"\0", data.find(b"\0", start + 2) + 1) + 1
        )  # after the language and the translated keyword
    elif is_compressed:
        start += 1  # the compression method; there is only one
    text = data[start:]
    return _inflated(text) if is_compressed else text


def _inflated(compressed: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(compressed, _MAX_TEXT_BYTES)
    except zlib.error:
        return b""
    return b"" if inflater.unconsumed_tail else text


def _from_hexadecimal(text: bytes) -> bytes:
    try:
        return bytes.fromhex(text.split(b"\n", 3)[3].decode())
    except (IndexError, ValueError):
        return b""
