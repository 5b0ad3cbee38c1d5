"""BMP: reads the header, which has the size and the kind of run-length encoding."""

from __future__ import annotations

import struct

from alignserve_server.model.preprocessing.image_files.picture import CheckSize, Picture, unreadable

SIGNATURE = b"BM"

_HEADER = 14  # where the second header starts, of which there are several kinds
_OLD_HEADER_BYTES = 12
_HEADER_BYTES = (40, 52, 56, 64, 108, 124)
_FIELDS = struct.Struct("<II2xHI12xI")  # width, height, bits, compression, colours
_PALETTE_BITS, _MAX_COLOURS = 8, 1 << 8
_RUN_LENGTHS = (1, 2)  # of bytes, of half bytes


def read(content: bytes, check_size: CheckSize) -> Picture:
    """Reads the header, as Pillow does: a height just below 2**32 is negative, which means top-down."""
    (header_bytes,) = struct.unpack_from("<I", content, _HEADER)
    if header_bytes == _OLD_HEADER_BYTES:
        width, height = struct.unpack_from("<HH", content, _HEADER + 4)
        check_size(width, height)
        return Picture("BMP", width, height, content)
    if header_bytes not in _HEADER_BYTES:
        raise unreadable()
    width, height, bits, compression, colours = _FIELDS.unpack_from(content, _HEADER + 4)
    if height >> 24 == 0xFF:
        height = (1 << 32) - height
    check_size(width, height)
    if bits <= _PALETTE_BITS and colours > _MAX_COLOURS:
        raise unreadable()  # Pillow would compare each colour with grey, in Python
    return Picture("BMP", width, height, content, holds_gil=compression in _RUN_LENGTHS)
