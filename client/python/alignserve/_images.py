"""Turns the caller's images into the encoded files to send."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from alignserve._png import check_pixels, encode_png, not_uint8

# The Pillow modes that PNG supports. Others are converted to RGB, as the server would do.
_PNG_MODES = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})
_MODES_WITHOUT_RANGE = {"F": "float32", "I": "int32"}
_ORIENTATION = 0x0112  # the EXIF tag


@runtime_checkable
class PillowImage(Protocol):
    """The part of `PIL.Image.Image` that this module uses, so that Pillow is optional."""

    @property
    def mode(self) -> str: ...

    @property
    def format(self) -> str | None: ...

    def convert(self, mode: str, /) -> PillowImage: ...

    def getexif(self) -> Mapping[int, Any]: ...

    def save(self, fp: IO[bytes], format: str, **params: Any) -> None: ...  # noqa: A002 — Pillow's name


@runtime_checkable
class BinaryFile(Protocol):
    """An open binary file, or an object with the same `read`."""

    def read(self, size: int = -1, /) -> bytes: ...


ImageInput: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryFile
    | PillowImage
    | NDArray[np.uint8]  # (height, width), or (height, width, channels) with 1, 3 or 4 channels
)
"""A path, the bytes of an image file, a file opened in binary mode, a Pillow image, or uint8 pixels."""


def is_image(value: object) -> bool:
    """Returns whether the value is one image, rather than a collection of images."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, BinaryFile, PillowImage)
    return isinstance(value, kinds) or (isinstance(value, np.ndarray) and value.ndim < 4)


def is_pixels(image: ImageInput) -> bool:
    """Returns whether the image is encoded here as PNG, rather than sent as the file that it is."""
    return isinstance(image, (np.ndarray, PillowImage))


def as_list(images: ImageInput | Iterable[ImageInput]) -> tuple[list[ImageInput], bool]:
    """Returns the images as a list, and whether a list was given. Pixels with four axes are a list."""
    if is_image(images):
        return [_kept(cast("ImageInput", images))], True
    return [_kept(image) for image in cast("Iterable[ImageInput]", images)], False


def encoded_image(image: ImageInput) -> bytes:
    """Returns the image as an encoded file; pixels become PNG, without loss.

    Args:
        image: A path, the bytes of a file, a file opened in binary mode, a Pillow image, or uint8 pixels of
            shape (height, width) or (height, width, channels) with 1, 3 or 4 channels.

    Raises:
        OSError: The file cannot be read.
        TypeError: The value is not an image, or its pixels are not uint8.
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
    if isinstance(image, BinaryFile):
        return _read(image)
    raise TypeError(
        f"{type(image).__name__} is not an image; give a path, a file's bytes, a Pillow image or uint8 pixels"
    )


def rgb_pixels(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Returns pixels as (height, width, 3), as the server reads their PNG: gray thrice, and no alpha.

    Args:
        pixels: uint8, (height, width) or (height, width, channels) with 1, 3 or 4 channels.

    Raises:
        TypeError: The elements are not uint8.
        ValueError: The shape is a different one, or a side is 0.
    """
    check_pixels(pixels)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    return pixels[:, :, :3]


def _kept(image: ImageInput) -> ImageInput:
    # A file can be read only once, but its request may have to be built again.
    return _read(image) if isinstance(image, BinaryFile) else image


def _read(file: BinaryFile) -> bytes:
    content: object = file.read()
    if not isinstance(content, bytes):
        raise TypeError(f"read() returned {type(content).__name__}, not bytes; open the image in binary mode")
    return content


def _saved(image: PillowImage) -> bytes:
    if image.mode in _MODES_WITHOUT_RANGE:
        raise not_uint8(_MODES_WITHOUT_RANGE[image.mode])
    file = io.BytesIO()
    exact = image if image.mode in _PNG_MODES else image.convert("RGB")
    # Low compression: the file is sent once and not stored.
    exact.save(file, format="PNG", compress_level=1, exif=_exif(image))
    return file.getvalue()


def _exif(image: PillowImage) -> bytes:
    # Keeps the EXIF orientation of pixels straight from a file. Transformed images have no format, and may
    # have been rotated already, so their pixels are taken as they are.
    orientation = image.getexif().get(_ORIENTATION, 1) if image.format else 1
    if orientation not in range(2, 9):
        return b""
    return struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, _ORIENTATION, 3, 1, orientation, 0, 0)
