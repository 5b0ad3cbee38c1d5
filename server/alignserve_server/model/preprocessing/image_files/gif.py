"""GIF: reads the first frame, and from the blocks before it only which colour is transparent."""

from __future__ import annotations

import struct

from alignserve_server.model.preprocessing.image_files.picture import (
    CheckSize,
    Picture,
    check_count,
    unreadable,
)

SIGNATURES = (b"GIF87a", b"GIF89a")

_SCREEN = struct.Struct("<6s2HB2x")  # signature, width, height, flags
_FRAME = struct.Struct("<4HB")  # left, top, width, height, flags
_CONTROL = struct.Struct("<BB2xB")  # length, flags, transparent colour
_HAS_PALETTE = 0x80
_IS_TRANSPARENT = 1

_EXTENSION, _IMAGE, _END, _GRAPHIC_CONTROL = 0x21, 0x2C, 0x3B, 0xF9


def read(content: bytes, check_size: CheckSize) -> Picture:
    """Reads the file up to the first frame, which may be larger than the screen."""
    _, width, height, flags = _SCREEN.unpack_from(content)
    palette_bytes = 3 << (flags & 7) + 1 if flags & _HAS_PALETTE else 0
    start = _SCREEN.size + palette_bytes
    image, transparent = _first_image(content, start)
    left, top, frame_width, frame_height, _ = _FRAME.unpack_from(content, image + 1)
    width, height = max(width, left + frame_width), max(height, top + frame_height)
    check_size(width, height)
    first_frame = b"".join([content[:start], transparent, memoryview(content)[image:]])
    return Picture("GIF", width, height, first_frame)


def _first_image(content: bytes, start: int) -> tuple[int, bytes]:
    """Returns where the first frame is, and an extension with only its transparent colour."""
    transparent = b""
    position, parts = start, 0
    while (kind := content[position]) != _IMAGE:
        parts += 1
        if kind == _END:
            raise unreadable()
        if kind == _EXTENSION:
            if content[position + 1] == _GRAPHIC_CONTROL:
                transparent = _transparency(content, position + 2) or transparent
            position += 2
            while length := content[position]:
                position += 1 + length
                parts += 1
                check_count("blocks", parts)
        check_count("blocks", parts)  # Pillow skips bytes between blocks one by one
        position += 1
    return position, transparent


def _transparency(content: bytes, start: int) -> bytes:
    length, flags, colour = _CONTROL.unpack_from(content, start)
    if length < _CONTROL.size - 1 or not flags & _IS_TRANSPARENT:
        return b""
    return bytes([_EXTENSION, _GRAPHIC_CONTROL, 4, _IS_TRANSPARENT, 0, 0, colour, 0])
