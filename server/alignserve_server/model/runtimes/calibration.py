"""Calibration images, like those that callers send, from which int8 quantization learns its ranges."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignserve_server.errors import InvalidArgument
from alignserve_server.model.encoder import PixelValues

LAYERS_VERSION = b"2"
"""Version of the choice of layers that `openvino_conversion` quantizes: others give other vectors."""

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
_MAX_IMAGES = 300  # more images hardly change the ranges


class CalibrationImages:
    """The images in a folder and its subfolders; if there are many, an even sample."""

    def __init__(self, folder: Path, preprocess: Callable[[bytes], PixelValues]) -> None:
        """Finds the images.

        Raises:
            ValueError: There are none.
        """
        # Only regular files: a folder may have such a name, and a named pipe would wait for a writer.
        files = sorted(
            path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file()
        )
        if not files:
            raise ValueError(f"calibration_dir {folder} has no images ({' '.join(_SUFFIXES)})")
        self._folder = folder
        self._files = files[:: math.ceil(len(files) / _MAX_IMAGES)]
        self._preprocess = preprocess

    @cached_property
    def digest(self) -> str:
        """Returns a digest of the files' contents and the choice of layers, as 16 hexadecimal digits.

        Raises:
            ValueError: A file cannot be read.
        """
        digest = hashlib.sha256(LAYERS_VERSION)
        for file in self._files:
            digest.update(hashlib.sha256(_content(file)).digest())
        return digest.hexdigest()[:16]

    def pixels(self) -> NDArray[np.uint8]:
        """Returns (images, height, width, 3), without corrupt images.

        Raises:
            ValueError: All images are corrupt, or a file cannot be read.
        """
        pixels = []
        for file in self._files:
            with suppress(InvalidArgument):
                pixels.append(self._preprocess(_content(file)))
        if not pixels:
            raise ValueError(f"calibration_dir {self._folder} has no image that can be read")
        return np.stack(pixels)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"the calibration image {file} cannot be read: {error.strerror}") from error
