"""Decodes run-length encoded BMP like Pillow, but run by run: Pillow goes pixel by pixel, at 0.2 µs each.

2.6 kB can encode 25 million pixels, which took Pillow four seconds.
"""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageFile

_END_OF_LINE, _END_OF_BITMAP, _DELTA = 0, 1, 2
_DIGITS = bytes.maketrans(b"0123456789abcdef", bytes(range(16)))

PILLOWS_NAME = "bmp_rle"
NAME = "alignserve_bmp_rle"  # Pillow's own decoder stays registered for other code in this process


class RunLengthDecoder(ImageFile.PyDecoder):
    """Replaces Pillow's `BmpRleDecoder`, with the same arguments and the same results in every case."""

    _pulls_fd = True

    def decode(self, buffer: Any) -> tuple[int, int]:  # noqa: ARG002 — it reads the file itself
        """Fills the image from the runs; missing pixels are black."""
        assert self.fd is not None  # noqa: S101 — for the type checker; Pillow sets it before
        _, has_half_bytes, direction = self.args
        start = self.fd.tell()
        self.fd.seek(0)
        size = self.state.xsize, self.state.ysize
        pixels = expanded(self.fd.read(), start, *size, has_half_bytes=has_half_bytes)
        self.set_as_raw(pixels, "L" if self.mode in {"1", "L"} else "P", (0, direction))
        return -1, 0


def expanded(data: bytes, position: int, width: int, height: int, *, has_half_bytes: bool) -> bytes:
    """Returns palette indices, one byte per pixel, decoded from the runs at a position until they end."""
    pixels = bytearray()
    x, size, last = 0, width * height, len(data) - 1
    while len(pixels) < size and position < last:
        count, value = data[position], data[position + 1]
        position += 2
        if count:
            count = min(count, max(0, width - x))
            run = data[position - 1 : position]
            pixels += (_halves(run) * (count // 2 + 1))[:count] if has_half_bytes else run * count
            x += count
        elif value == _END_OF_LINE:
            pixels += bytes(-len(pixels) % width)
            x = 0
        elif value == _END_OF_BITMAP:
            break
        elif value == _DELTA:
            if position >= last:
                break
            step = data[position] + data[position + 1] * width
            position += 2
            pixels += bytes(min(size - len(pixels), step))
            x = len(pixels) % width
        else:
            count = min(size - len(pixels), value)
            length = (count + 1) // 2 if has_half_bytes else count
            plain = data[position : position + length]
            position += length
            pixels += _halves(plain)[:count] if has_half_bytes else plain
            if len(plain) < length:
                break
            x += value
            position += position % 2  # runs start at even positions
    return bytes(pixels)


def _halves(data: bytes) -> bytes:
    """Returns a byte for each half-byte, the higher half first."""
    return data.hex().encode().translate(_DIGITS)


Image.register_decoder(NAME, RunLengthDecoder)
