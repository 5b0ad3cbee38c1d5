"""Protobuf's framing, around bytes that are at hand already.

A generated message would copy each image three times on its way to the channel; here it is joined once.
"""

from __future__ import annotations

from collections.abc import Iterable

_BYTES = 2  # the wire type of strings, bytes and messages
_VARINT = 0
_FIXED_SIZES = {1: 8, 5: 4}  # of the wire types for fixed64 and fixed32


def varint(value: int) -> bytes:
    """Returns a number from 0, seven bits a byte, the lowest ones first."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def header(field: int, size: int) -> bytes:
    """Returns what stands before the `size` bytes of a field."""
    return varint(field << 3 | _BYTES) + varint(size)


def framed(field: int, pieces: Iterable[bytes]) -> list[bytes]:
    """Returns the pieces of a field whose content comes in pieces."""
    content = list(pieces)
    return [header(field, sum(map(len, content))), *content]


def content_fields(message: bytes) -> dict[int, bytes]:
    """Returns the strings, bytes and messages of a message by field number, the last of each.

    Raises:
        ValueError: It is no message.
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
            raise ValueError(f"no protobuf message: wire type {kind}")
    if position > len(message):
        raise ValueError("no protobuf message: it ends within a field")
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
    raise ValueError("no protobuf message: it ends within a number")
