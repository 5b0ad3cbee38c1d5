"""How to hold a picture, as its EXIF or XMP says: what Pillow would find there, in bounded time.

Pillow reads every tag to find this one, and joins and inflates whatever comes under the name of EXIF.
"""

from __future__ import annotations

import re
import struct

_TAG = 0x0112
_BYTE_ORDERS = {  # by the first bytes of TIFF; the last three are common mistakes, which Pillow forgives
    b"II*\0": "<",
    b"MM\0*": ">",
    b"II\0*": "<",
    b"MM*\0": ">",
    b"MM\0+": ">",
}
_NUMBERS = {3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 13: "L"}  # TIFF's whole numbers, as struct knows them
_INLINE_BYTES = 4  # a value is in its entry if it fits, and one number does

_EXIF_PREFIX = re.compile(rb"(?:Exif\0\0){0,2}")
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_XMP_MATCH_BYTES = len(b'tiff:Orientation="0')
_XMP_WINDOW = 1 << 20  # bytes searched at once: a search lets no other thread run


def orientation_of(exif: bytes, xmp: bytes) -> int | None:
    """Returns the number that EXIF or else XMP gives; None if neither does or neither can be read."""
    try:
        found = _of_exif(exif)
    except struct.error:
        found = None
    return _of_xmp(xmp) if found is None else found


def _of_exif(exif: bytes) -> int | None:
    start = _EXIF_PREFIX.match(exif).end()  # type: ignore[union-attr]  # it matches nothing, too
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
