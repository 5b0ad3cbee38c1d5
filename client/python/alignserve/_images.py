"""Images as callers have them, to the encoded files that travel."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from alignserve._png import encode_png

# The modes of Pillow that PNG holds. The others are shown as RGB, which is how the server would read them.
_PNG_MODES = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})


@runtime_checkable
class PillowImage(Protocol):
    """The part of `PIL.Image.Image` that is needed, so that Pillow need not be installed."""

    @property
    def mode(self) -> str: ...

    def convert(self, mode: str, /) -> PillowImage: ...

    def save(self, fp: IO[bytes], format: str, /, **params: Any) -> None: ...  # noqa: A002 — Pillow's name


ImageInput: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | NDArray[np.uint8] | PillowImage"
)


def is_image(value: object) -> bool:
    """Says whether the value is one image, rather than a collection of them."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, PillowImage)
    return isinstance(value, kinds) or (isinstance(value, np.ndarray) and value.ndim < 4)


def as_list(images: ImageInput | Iterable[ImageInput]) -> tuple[list[ImageInput], bool]:
    """Returns the images as a list, and whether they were given as one. Pixels of four axes are many."""
    if is_image(images):
        return [cast("ImageInput", images)], True
    return list(cast("Iterable[ImageInput]", images)), False


def encoded_image(image: ImageInput) -> bytes:
    """Returns the image as an encoded file; pixels become PNG, without loss.

    Args:
        image: A path, the bytes of a file, a Pillow image, or uint8 pixels of shape (height, width) or
            (height, width, 3).

    Raises:
        OSError: The file cannot be read.
        TypeError: The value is no image.
        ValueError: The pixels have another shape.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, os.PathLike)):
        return Path(image).read_bytes()
    if isinstance(image, (bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, np.ndarray):
        return encode_png(image)
    if isinstance(image, PillowImage):
        return _saved(image)
    raise TypeError(
        f"{type(image).__name__} is no image; give a path, a file's bytes, a Pillow image or uint8 pixels"
    )


def _saved(image: PillowImage) -> bytes:
    file = io.BytesIO()
    exact = image if image.mode in _PNG_MODES else image.convert("RGB")
    exact.save(file, "PNG", compress_level=1)  # fast: the file travels once and is not kept
    return file.getvalue()
