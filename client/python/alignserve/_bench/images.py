"""Image files whose copies differ in their bytes but show the same picture."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from alignserve._bench.tags import TAG_SIZE
from alignserve._png import encode_png

_WIDTH, _HEIGHT = 640, 480
_NOISE = 4  # of 256 levels, as in a camera; it makes the file as large as that of a photo


@dataclass(frozen=True, slots=True)
class VariedImage:
    """An image file with a place for a comment.

    Attributes:
        head: Bytes before the comment.
        tail: Bytes after the comment.
        comment: Wraps a tag as a comment of the file's format.
    """

    head: bytes
    tail: bytes
    comment: Callable[[bytes], bytes]

    def pieces(self, tag: bytes) -> tuple[bytes, ...]:
        """Returns the file with the tag in it, in pieces."""
        return self.head, self.comment(tag), self.tail


def varied_image(content: bytes) -> VariedImage:
    """Returns a file that can carry tags.

    Raises:
        ValueError: Its format is not supported.
    """
    for signature, vary in _FORMATS.items():
        if content.startswith(signature):
            try:
                return vary(content)
            except (IndexError, struct.error) as error:
                raise ValueError("the image is truncated; leave it out, or use --no-unique") from error
    raise ValueError("only PNG, JPEG, GIF, WebP and BMP can be made unique; use --no-unique")


def unvaried_image(content: bytes) -> VariedImage:
    """Returns a file that is sent unchanged."""
    return VariedImage(content, b"", lambda _: b"")


def synthetic_photos(count: int = 4) -> list[bytes]:
    """Returns photo-like PNG files of 640 by 480 pixels, always the same."""
    return [_synthetic_photo(np.random.default_rng(number)) for number in range(count)]


def _synthetic_photo(rng: np.random.Generator) -> bytes:
    y, x = np.mgrid[0 : 1 : _HEIGHT * 1j, 0 : 1 : _WIDTH * 1j]
    waves = [
        np.sin(rng.uniform(1, 12) * x + rng.uniform(1, 12) * y + rng.uniform(0, 6, size=(3, 1, 1)))
        for _ in range(4)
    ]
    smooth = 128 + 30 * np.sum(waves, axis=0)  # (3, height, width)
    noisy = smooth + rng.uniform(-_NOISE / 2, _NOISE / 2, size=smooth.shape)
    return encode_png(np.ascontiguousarray(noisy.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)))


def _png(content: bytes) -> VariedImage:
    first_chunk = 8
    (size,) = struct.unpack_from(">I", content, first_chunk)
    end = first_chunk + 12 + size  # the first chunk is the header, and must stay first
    return VariedImage(content[:end], content[end:], _png_comment)


def _png_comment(tag: bytes) -> bytes:
    data = b"tEXtComment\0" + tag
    return struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))


def _jpeg(content: bytes) -> VariedImage:
    end = 2
    while content[end] == 0xFF and 0xE0 <= content[end + 1] <= 0xEF:  # JFIF and Exif must come first
        end += 2 + struct.unpack_from(">H", content, end + 2)[0]
    return VariedImage(content[:end], content[end:], _jpeg_comment)


def _jpeg_comment(tag: bytes) -> bytes:
    return b"\xff\xfe" + struct.pack(">H", len(tag) + 2) + tag


def _gif(content: bytes) -> VariedImage:
    flags = content[10]
    colors = 3 << ((flags & 7) + 1) if flags & 0x80 else 0
    return VariedImage(content[: 13 + colors], content[13 + colors :], _gif_comment)


def _gif_comment(tag: bytes) -> bytes:
    return b"\x21\xfe" + bytes([len(tag)]) + tag + b"\0"


def _webp(content: bytes) -> VariedImage:
    (size,) = struct.unpack_from("<I", content, 4)
    file = content[: 8 + size]
    grown = struct.pack("<I", size + len(_webp_comment(bytes(TAG_SIZE))))
    return VariedImage(file[:4] + grown + file[8:], b"", _webp_comment)


def _webp_comment(tag: bytes) -> bytes:
    return b"note" + struct.pack("<I", len(tag)) + tag + b"\0" * (len(tag) % 2)


def _bmp(content: bytes) -> VariedImage:
    return VariedImage(
        content, b"", lambda tag: tag
    )  # readers find the pixels by an offset, and ignore bytes after them


_FORMATS: dict[bytes, Callable[[bytes], VariedImage]] = {
    b"\x89PNG\r\n\x1a\n": _png,
    b"\xff\xd8\xff": _jpeg,
    b"GIF8": _gif,
    b"RIFF": _webp,
    b"BM": _bmp,
}
