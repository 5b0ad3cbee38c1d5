"""Short tags of which no two are alike, for inputs that no cache may know."""

from __future__ import annotations

from collections.abc import Iterator

TAG_SIZE = 7  # bytes
_DIGITS = b"0123456789abcdefghijklmnopqrstuvwxyz"

COUNT = len(_DIGITS) ** TAG_SIZE


def tags(start: int) -> Iterator[bytes]:
    """Yields tags of letters and digits; two starts far apart give two runs no tag in common."""
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
