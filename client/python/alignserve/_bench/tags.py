"""Short unique tags, for inputs that must not be in any cache."""

from __future__ import annotations

from collections.abc import Iterator

TAG_SIZE = 7  # bytes
_DIGITS = b"0123456789abcdefghijklmnopqrstuvwxyz"

COUNT = len(_DIGITS) ** TAG_SIZE


def tags(start: int) -> Iterator[bytes]:
    """Yields tags of letters and digits; runs whose starts are far apart have no tags in common."""
    number = start
    while True:
        yield _tag(number % COUNT)
        number += 1


def _tag(number: int) -> bytes:
    tag = bytearray(TAG_SIZE)
    for position in reversed(range(TAG_SIZE)):
        number, digit = divmod(number, len(_DIGITS))
        tag[position] = _DIGITS[digit]
    return bytes(tag)
