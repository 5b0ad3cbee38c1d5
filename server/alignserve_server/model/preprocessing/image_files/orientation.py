"""Reads a picture's orientation from its EXIF or XMP like Pillow, but in bounded time.

Pillow reads every tag to find this one, and concatenates and inflates anything labelled EXIF.
"""

from __future__ import annotations

import re
import struct

_TAG = 0x0112
_BYTE_ORDERS = {  # by the first bytes of TIFF; the last three are common mistakes, which Pillow accepts
    b"II*\0": "<",
    b"MM\0*": ">",
    b"II\0*": "<",
    b"MM*\0": ">",
    b"MM\0+": ">",
}
_NUMBERS = {3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 13: "L"}  # struct codes of TIFF's integer types
_INLINE_BYTES = 4  # a value that fits is stored in its entry, as a single number does

_EXIF_PREFIX = re.compile(rb"(?:Exif\0\0){0,2}")
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_XMP_MATCH_BYTES = len(b'tiff:Orientation="0')
_XMP_WINDOW = 1 << 20  # bytes searched at once: a search holds the GIL


def orientation_of(exif: bytes, xmp: bytes) -> int | None:
    """Returns the orientation from EXIF, or from XMP if EXIF has none; None if neither has one."""
    try:
        found = _of_exif(exif)
    except struct.error:
        found = None
    return _of_xmp(xmp) if found is None else found


def _of_exif(exif: bytes) -> int | None:
    start = _EXIF_PREFIX.match(exif).end()  # type: ignore[union-attr]  # it also matches the empty string
    order = _BYTE_ORDERS.get(exif[start : start + 4])
    if order is None:
        return None
    directory = start + struct.unpack_from(f"{order}L", exif, start + 4)[0]
    (count,) = struct.unpack_from(f"{order}H", exif, directory)
    entry = struct.Struct(f"{order}HHL4s")
    table = exif[directory + 2 : directory + 2 + count * entry.size]
    for tag, kind, length, value in entry.iter_unpack(table[: len(table) // entry.size * entry.size]):
        if tag == _TAG and kind in _NUMBERS:
            number = struct.Struct(order + _NUMBERS[kind])
            if 1 <= length <= _INLINE_BYTES // number.size:
                return int(number.unpack_from(value)[0])
    return None


def _of_xmp(xmp: bytes) -> int | None:
    for start in range(0, len(xmp), _XMP_WINDOW):
        if found := _XMP.search(xmp, start, start + _XMP_WINDOW + _XMP_MATCH_BYTES):
            return int(found[1])
    return None
