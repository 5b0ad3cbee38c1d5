"""Images like those that callers send, from which int8 learns the ranges of its numbers."""

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

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
_MOST_IMAGES = 300  # more change the ranges hardly


class CalibrationImages:
    """The images of a folder and of those inside it; of many, some from everywhere."""

    def __init__(self, folder: Path, preprocess: Callable[[bytes], PixelValues]) -> None:
        """Finds the images.

        Raises:
            ValueError: There is none.
        """
        # Files alone: a folder may be called so, and a named pipe would wait for a writer.
        files = sorted(
            path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file()
        )
        if not files:
            raise ValueError(f"calibration_dir {folder} has no images ({' '.join(_SUFFIXES)})")
        self._folder = folder
        self._files = files[:: math.ceil(len(files) / _MOST_IMAGES)]
        self._preprocess = preprocess

    @cached_property
    def digest(self) -> str:
        """Digests the contents of the files, in 16 hexadecimal digits.

        Raises:
            ValueError: One may not be read.
        """
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(hashlib.sha256(_content(file)).digest())
        return digest.hexdigest()[:16]

    def pixels(self) -> NDArray[np.uint8]:
        """Returns (images, height, width, 3), without images that are broken.

        Raises:
            ValueError: All are broken, or one may not be read.
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
