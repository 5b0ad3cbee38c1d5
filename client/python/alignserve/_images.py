"""Images as callers have them, to the encoded files that travel."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from alignserve._png import encode_png, not_uint8

# The modes of Pillow that PNG holds. The others are shown as RGB, which is how the server would read them.
_PNG_MODES = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})
_MODES_WITHOUT_RANGE = {"F": "float32", "I": "int32"}
_ORIENTATION = 0x0112  # EXIF's tag


@runtime_checkable
class PillowImage(Protocol):
    """The part of `PIL.Image.Image` that is needed, so that Pillow need not be installed."""

    @property
    def mode(self) -> str: ...

    @property
    def format(self) -> str | None: ...

    def convert(self, mode: str, /) -> PillowImage: ...

    def getexif(self) -> Mapping[int, Any]: ...

    def save(self, fp: IO[bytes], format: str, **params: Any) -> None: ...  # noqa: A002 — Pillow's name


@runtime_checkable
class BinaryFile(Protocol):
    """An open file, or what reads like one."""

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


def is_image(value: object) -> bool:
    """Says whether the value is one image, rather than a collection of them."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, BinaryFile, PillowImage)
    return isinstance(value, kinds) or (isinstance(value, np.ndarray) and value.ndim < 4)


def is_pixels(image: ImageInput) -> bool:
    """Says whether the image travels as a PNG that is made here, rather than as the file that it is."""
    return isinstance(image, (np.ndarray, PillowImage))


def as_list(images: ImageInput | Iterable[ImageInput]) -> tuple[list[ImageInput], bool]:
    """Returns the images as a list, and whether they were given as one. Pixels of four axes are many."""
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
        TypeError: The value is no image, or its pixels are not uint8.
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
        f"{type(image).__name__} is no image; give a path, a file's bytes, a Pillow image or uint8 pixels"
    )


def _kept(image: ImageInput) -> ImageInput:
    # A file can be read once, and its request may have to be made again.
    return _read(image) if isinstance(image, BinaryFile) else image


def _read(file: BinaryFile) -> bytes:
    content: object = file.read()
    if not isinstance(content, bytes):
        raise TypeError(f"read() gave {type(content).__name__}, not bytes; open the image in binary mode")
    return content


def _saved(image: PillowImage) -> bytes:
    if image.mode in _MODES_WITHOUT_RANGE:
        raise not_uint8(_MODES_WITHOUT_RANGE[image.mode])
    file = io.BytesIO()
    exact = image if image.mode in _PNG_MODES else image.convert("RGB")
    # compress_level: the file travels once and is not kept
    exact.save(file, format="PNG", compress_level=1, exif=_exif(image))
    return file.getvalue()


def _exif(image: PillowImage) -> bytes:
    # Pixels as they stand in a file may be turned by its EXIF. Of pixels that were transformed, which have no
    # format, nobody knows whether they were turned meanwhile; they are as they look.
    orientation = image.getexif().get(_ORIENTATION, 1) if image.format else 1
    if orientation not in range(2, 9):
        return b""
    return struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, _ORIENTATION, 3, 1, orientation, 0, 0)
