"""Pixels as the server takes them: RGB, a byte per channel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignserve._png import check_pixels, encode_png
from alignserve.v1 import align_service_pb2 as pb


def rgb_pixels(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Returns pixels as (height, width, 3), as the server reads their PNG: gray three times, without alpha.

    Args:
        pixels: uint8, (height, width) or (height, width, channels) with 1, 3 or 4 channels.

    Raises:
        TypeError: The elements are not uint8.
        ValueError: The shape is a different one, or a side is 0.
    """
    check_pixels(pixels)
    channels = pixels if pixels.ndim == 3 else pixels[:, :, None]
    return np.repeat(channels, 3, axis=2) if channels.shape[2] == 1 else channels[:, :, :3]


def pixels_message(pixels: NDArray[Any]) -> pb.Pixels:
    """Returns the message for an array; see `rgb_pixels`."""
    rgb = rgb_pixels(pixels)
    height, width, _ = rgb.shape
    return pb.Pixels(height=height, width=width, data=rgb.tobytes())


def as_png(pixels: pb.Pixels) -> bytes:
    """Returns the same pixels as a PNG file, which is smaller for most images and takes longer to make."""
    rgb = np.frombuffer(pixels.data, np.uint8).reshape(pixels.height, pixels.width, 3)
    return encode_png(rgb)
