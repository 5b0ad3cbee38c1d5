"""Encodes pixels as PNG, without an imaging library."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPES = {1: 0, 3: 2, 4: 6}  # PNG's color type by channels: gray, RGB, RGBA
_FILTER_UP = 2  # each row as its difference from the row above, which halves the size of photographs
_FAST = 1  # zlib's level: the file is sent once and not stored


def encode_png(pixels: NDArray[Any]) -> bytes:
    """Encodes pixels without loss.

    Args:
        pixels: uint8, (height, width) or (height, width, 1) for gray, (height, width, 3) for RGB or
            (height, width, 4) for RGBA.

    Raises:
        TypeError: The elements are not uint8.
        ValueError: The shape is a different one, or a side is 0.
    """
    check_pixels(pixels)
    height, width, channels = (*pixels.shape, 1)[:3]
    rows = pixels.reshape(height, -1)
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = _FILTER_UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])  # modulo 256, as PNG requires
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOR_TYPES[channels], 0, 0, 0)
    return b"".join(
        (
            _SIGNATURE,
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", zlib.compress(filtered.tobytes(), _FAST)),
            _chunk(b"IEND", b""),
        )
    )


def not_uint8(dtype: object) -> TypeError:
    """Returns the error for pixels of another type, whose range is unknown."""
    return TypeError(f"pixels are {dtype}; convert them to uint8, from 0 to 255")


def check_pixels(pixels: NDArray[Any]) -> None:
    """Raises what `encode_png` raises for an array that is not an image."""
    if pixels.dtype != np.uint8:
        raise not_uint8(pixels.dtype)
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in _COLOR_TYPES)
    if not is_image or pixels.size == 0:
        raise ValueError(
            f"pixels have shape {pixels.shape}; "
            "send (height, width) or (height, width, channels) with 1, 3 or 4 channels"
        )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
