"""Turns untrusted files and pixels into RGB images, or raises an error that says what is wrong with them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from io import BytesIO

from PIL import Image, features
from PIL.ImageFile import ImageFile

from alignserve_server.errors import ImageTooLarge, ImageUnreadable
from alignserve_server.model.encoder import PixelArray
from alignserve_server.model.preprocessing import bmp_rle, heif
from alignserve_server.model.preprocessing.image_files import (
    FURTHER_FORMATS,
    IMAGE_FORMATS,
    Picture,
    read_picture,
)

__all__ = ["FURTHER_FORMATS", "IMAGE_FORMATS", "MAX_IMAGE_SIDE", "ImageDecoder", "accepted_formats"]

# The longer side of a thin picture costs memory too: resizing keeps a row of weights for each of its pixels.
# 65,535 is the maximum of JPEG and GIF.
MAX_IMAGE_SIDE = 65_535

_PIXELS = "pixels"  # the format of a picture whose content is decoded already

_UPRIGHT = {  # EXIF orientation to the operation that undoes it; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TO_8_BITS = [(value + 128) // 257 for value in range(1 << 16)]  # value / 257, rounded


def accepted_formats(further: Sequence[str]) -> tuple[str, ...]:
    """Returns the formats that are always supported, and the requested ones of `FURTHER_FORMATS`.

    Raises:
        ValueError: The decoder for one of them is not installed.
    """
    if "HEIC" in further and not heif.is_installed():
        raise ValueError("extra_image_formats: heic needs pi-heif; pip install 'alignserve[heif]'")
    for name, feature in (("AVIF", "avif"), ("TIFF", "libtiff")):
        if name in further and not features.check(feature):
            raise ValueError(
                f"extra_image_formats: {name.lower()} needs a Pillow with {feature}; those from PyPI have it"
            )
    return (*IMAGE_FORMATS, *(name for name in FURTHER_FORMATS if name in further))


class ImageDecoder:
    """Decodes images as `transformers.image_utils.load_image` does, within limits.

    It takes the first frame, applies the EXIF orientation, and converts to RGB: palettes are resolved, alpha
    is dropped, CMYK is converted without its profile. There are two deliberate differences: 16-bit greyscale
    is scaled to 8 bits, whereas the reference clips at 255 and turns most of the picture white; and corrupt
    metadata is ignored, whereas the reference fails.
    """

    def __init__(self, *, max_bytes: int, max_pixels: int, formats: Sequence[str] = IMAGE_FORMATS) -> None:
        self.max_bytes = max_bytes
        self.max_pixels = max_pixels
        self._formats = tuple(formats)
        # Both settings are per process, so they are set once, before threads decode. Pillow's own limit is
        # only a second defence: it merely warns up to twice its value, and must allow other decoders' images.
        Image.MAX_IMAGE_PIXELS = max(max_pixels, Image.MAX_IMAGE_PIXELS or 0)
        warnings.filterwarnings(
            "ignore", module=r"PIL\."
        )  # warnings about corrupt metadata in untrusted files

    def decode(self, content: bytes) -> Image.Image:
        """Returns the picture, upright and in mode RGB.

        Raises:
            ImageUnreadable: The bytes are not in one of the formats, or are corrupt or incomplete.
            ImageTooLarge: The image exceeds the limits on bytes or pixels, or has more parts than any real
                file.
        """
        return draw(self.read(content))

    def read(self, content: bytes) -> Picture:
        """Finds the picture in a file, in bounded time, with little more memory than the file's size.

        Raises:
            ImageUnreadable: As for `decode`, except for errors in the pixels.
            ImageTooLarge: As for `decode`.
        """
        if not content:
            raise ImageUnreadable("image is empty; send the bytes of an image file")
        if len(content) > self.max_bytes:
            raise ImageTooLarge(f"image has {len(content)} bytes, limit {self.max_bytes}; send a smaller one")
        return read_picture(content, self.check_size, self._formats)

    def picture_of(self, pixels: PixelArray) -> Picture:
        """Returns the picture of decoded pixels. The limit on the bytes of files does not apply.

        Raises:
            ImageUnreadable: The data does not have the given shape.
            ImageTooLarge: The image exceeds the limits on pixels or sides.
        """
        pixels.check_shape()
        self.check_size(pixels.width, pixels.height)
        return Picture(_PIXELS, pixels.width, pixels.height, pixels.data)

    def check_size(self, width: int, height: int, what: str = "image") -> None:
        """Raises ImageTooLarge or, if a side is empty, ImageUnreadable."""
        if min(width, height) < 1:
            raise ImageUnreadable(f"{what} has no pixels: {width} x {height}")
        if width * height > self.max_pixels:
            raise ImageTooLarge(
                f"{what} has {width} x {height} = {width * height} pixels, limit {self.max_pixels}; "
                "send a smaller one"
            )
        if max(width, height) > MAX_IMAGE_SIDE:
            side, length = ("width", width) if width > height else ("height", height)
            raise ImageTooLarge(
                f"{what} has a {side} of {length}, limit {MAX_IMAGE_SIDE}; send a smaller one"
            )


def draw(picture: Picture) -> Image.Image:
    """Decodes a picture of checked size; the result is upright and in mode RGB.

    Raises:
        ImageUnreadable: It is corrupt or incomplete, or needs more memory than available.
    """
    image = None
    if picture.format == _PIXELS:
        return _framed(picture)
    if picture.format == "HEIF":
        heif.register()
    if picture.format == "AVIF":
        _keep_avif_to_one_thread()
    with suppress(Exception):  # any: decoders raise far more than OSError on corrupt files
        image = Image.open(BytesIO(picture.content), formats=[picture.format])
        return _drawn(image, picture)
    if image is not None:
        image.close()
    # Raised outside the block: as a context, the other error's traceback would keep the picture in memory.
    raise ImageUnreadable("image is broken or incomplete; it does not decode")


def _framed(picture: Picture) -> Image.Image:
    with suppress(MemoryError):
        return Image.frombytes("RGB", (picture.width, picture.height), picture.content)
    raise ImageUnreadable("image needs more memory than available")


@cache
def _keep_avif_to_one_thread() -> None:
    from PIL import AvifImagePlugin  # loads its decoder, which the server's own process does not need

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # other threads decode other images


def _drawn(image: ImageFile, picture: Picture) -> Image.Image:
    if image.size != (picture.width, picture.height):
        raise ValueError("Pillow reads a different size than was checked")
    image.tile = [
        tile._replace(codec_name=bmp_rle.NAME) if tile.codec_name == bmp_rle.PILLOWS_NAME else tile
        for tile in image.tile
    ]
    image.load()
    if image.size != (picture.width, picture.height):  # libheif may find the real size only while decoding
        raise ValueError("the picture has a different size than was checked")
    image.info.pop("transparency", None)  # it does not affect RGB pixels, and converting it can fail
    if picture.orientation in _UPRIGHT:
        return _to_rgb(image.transpose(_UPRIGHT[picture.orientation]))
    return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = image.convert("I").point(_TO_8_BITS, "L")
    return image if image.mode == "RGB" else image.convert("RGB")
