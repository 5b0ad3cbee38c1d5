"""Protobuf's framing, around bytes that already exist.

A generated message would copy each image three times on its way to the channel; this copies it once.
"""

from __future__ import annotations

from collections.abc import Iterable

_BYTES = 2  # the wire type of strings, bytes and messages
_VARINT = 0
_FIXED_SIZES = {1: 8, 5: 4}  # of the wire types for fixed64 and fixed32


def varint(value: int) -> bytes:
    """Encodes a non-negative number, seven bits per byte, lowest bits first."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def header(field: int, size: int) -> bytes:
    """Returns the header of a field whose content has `size` bytes."""
    return varint(field << 3 | _BYTES) + varint(size)


def framed(field: int, pieces: Iterable[bytes]) -> list[bytes]:
    """Returns a field in pieces, given its content in pieces."""
    content = list(pieces)
    return [header(field, sum(map(len, content))), *content]


def content_fields(message: bytes) -> dict[int, bytes]:
    """Returns the strings, bytes and messages in a message by field number; the last value wins.

    Raises:
        ValueError: It is not a message.
    """
    found = {}
    position = 0
    while position < len(message):
        key, position = _read_varint(message, position)
        field, kind = key >> 3, key & 7
        if kind == _BYTES:
            size, position = _read_varint(message, position)
            found[field] = message[position : position + size]
            position += size
        elif kind == _VARINT:
            _, position = _read_varint(message, position)
        elif kind in _FIXED_SIZES:
            position += _FIXED_SIZES[kind]
        else:
            raise ValueError(f"not a protobuf message: wire type {kind}")
    if position > len(message):
        raise ValueError("not a protobuf message: it ends within a field")
    return found


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(message):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("not a protobuf message: it ends within a number")
