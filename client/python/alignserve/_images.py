"""Turns the caller's images into what is sent: files, or pixels."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from alignserve._pixels import as_png, pixels_message
from alignserve._png import encode_png, not_uint8
from alignserve.v1 import align_service_pb2 as pb

# The Pillow modes that PNG supports. Others are converted to RGB, as the server would do.
_PNG_MODES = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})
_PIXEL_MODES = frozenset({"L", "RGB", "RGBA"})  # whose pixels the server would read from PNG as they are
_MODES_WITHOUT_RANGE = {"F": "float32", "I": "int32"}
_BYTES_AROUND_PIXELS = 32  # tags and lengths of the pixels' fields, rounded up
_ORIENTATION = 0x0112  # the EXIF tag


@runtime_checkable
class PillowImage(Protocol):
    """The part of `PIL.Image.Image` that this module uses, so that Pillow is optional."""

    @property
    def mode(self) -> str: ...

    @property
    def format(self) -> str | None: ...

    @property
    def size(self) -> tuple[int, int]: ...

    def convert(self, mode: str, /) -> PillowImage: ...

    def getexif(self) -> Mapping[int, Any]: ...

    def tobytes(self) -> bytes: ...

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
    """Returns whether the image has pixels, rather than being a file that is sent as it is."""
    return isinstance(image, (np.ndarray, PillowImage))


def as_list(images: ImageInput | Iterable[ImageInput]) -> tuple[list[ImageInput], bool]:
    """Returns the images as a list, and whether a list was given. Pixels with four axes are a list."""
    if is_image(images):
        return [kept(cast("ImageInput", images))], True
    return [kept(image) for image in cast("Iterable[ImageInput]", images)], False


def image_message(image: ImageInput) -> pb.Image:
    """Returns the message for an image: the bytes of a file, or pixels; see `encoded_image`.

    Pillow images with an EXIF orientation, and in modes that the server reads from PNG in its own way, become
    PNG files.
    """
    if isinstance(image, np.ndarray):
        return pb.Image(pixels=pixels_message(image))
    if isinstance(image, PillowImage) and image.mode in _PIXEL_MODES and not _exif(image):
        width, height = image.size
        data = image.convert("RGB").tobytes()
        return pb.Image(pixels=pb.Pixels(height=height, width=width, data=data))
    return pb.Image(content=encoded_image(image))


def image_size(image: pb.Image) -> int:
    """Returns the bytes that an image needs in a message, without the image's own tag and length."""
    if image.WhichOneof("source") == "pixels":
        return len(image.pixels.data) + _BYTES_AROUND_PIXELS
    return len(image.content)


def compressed(image: pb.Image) -> pb.Image:
    """Returns an image whose pixels became PNG, without loss; a file is returned as it is."""
    return pb.Image(content=as_png(image.pixels)) if image.WhichOneof("source") == "pixels" else image


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


def kept(image: ImageInput) -> ImageInput:
    """Returns the image in a form that can be read again; an open file is read now.

    A request may have to be built again, but a file can be read only once.
    """
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
