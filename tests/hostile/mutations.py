"""Damaged copies of images: the same ones on every run."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator

SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0")

_LENGTHS = (0, 1, 2, 255, 4096, 16_383, 65_535, 0x7FFFFFFF, 0xFFFFFFFF)


def mutants(content: bytes, count: int) -> Iterator[bytes]:
    """Yields damaged copies of an image; the damage depends only on the content."""
    rng = random.Random(content)
    for _ in range(count):
        yield rng.choice(_MUTATIONS)(bytearray(content), rng)


def with_dimensions(content: bytes, width: int, height: int) -> bytes:
    """Returns an image that claims these dimensions, or the nearest that its format can express."""
    position, field = _dimensions_of(content)
    limit = (1 << 8 * struct.calcsize(field) // 2) - 1
    changed = bytearray(content.ljust(position + struct.calcsize(field), b"\0"))
    sides = (width, height) if field != ">HH" else (height, width)  # JPEG stores the height first
    struct.pack_into(field, changed, position, *(min(side, limit) for side in sides))
    if changed.startswith(b"\x89PNG"):
        changed[29:33] = struct.pack(">I", zlib.crc32(changed[12:29]))  # otherwise decoders skip the header
    return bytes(changed)


def _truncated(content: bytearray, rng: random.Random) -> bytes:
    return bytes(content[: rng.randrange(len(content))])


def _with_flipped_bits(content: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 16)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def _with_another_header(content: bytearray, rng: random.Random) -> bytes:
    signature = rng.choice(SIGNATURES)
    return signature + bytes(content[len(signature) :])


def _with_other_dimensions(content: bytearray, rng: random.Random) -> bytes:
    return with_dimensions(bytes(content), rng.choice(_LENGTHS), rng.choice(_LENGTHS))


def _dimensions_of(content: bytes) -> tuple[int, str]:
    """Returns the offset and struct format of a file's width and height."""
    if content.startswith(b"\x89PNG"):
        return 16, ">II"
    if content.startswith(b"GIF8"):
        return 6, "<HH"
    if content.startswith(b"BM"):
        return 18, "<II"
    if content.startswith(b"RIFF"):
        return 26, "<HH"  # in a lossy frame; in a lossless one this is picture data
    return max(0, content.find(b"\xff\xc0")) + 5, ">HH"


def _with_wrong_length(content: bytearray, rng: random.Random) -> bytes:
    position = rng.randrange(max(1, len(content) - 4))
    content[position : position + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(_LENGTHS))
    return bytes(content)


def _with_a_part_moved(content: bytearray, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    part = content[start:end]
    if rng.random() < 0.5:
        del content[start:end]
    to = rng.randrange(len(content) + 1)
    content[to:to] = part
    return bytes(content)


def _with_garbage_behind(content: bytearray, rng: random.Random) -> bytes:
    return bytes(content) + rng.randbytes(rng.randint(1, 4096))


_MUTATIONS: tuple[Callable[[bytearray, random.Random], bytes], ...] = (
    _truncated,
    _with_flipped_bits,
    _with_another_header,
    _with_other_dimensions,
    _with_wrong_length,
    _with_a_part_moved,
    _with_garbage_behind,
)
