"""Untrusted bytes become RGB pixels, or an error that names what is wrong with them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from io import BytesIO

from PIL import Image, features
from PIL.ImageFile import ImageFile

from alignserve_server.errors import ImageTooLarge, ImageUnreadable
from alignserve_server.model.preprocessing import heif, run_lengths
from alignserve_server.model.preprocessing.image_files import (
    FURTHER_FORMATS,
    IMAGE_FORMATS,
    Picture,
    read_picture,
)

__all__ = ["FURTHER_FORMATS", "IMAGE_FORMATS", "MAX_IMAGE_SIDE", "ImageDecoder", "accepted_formats"]

# A thin picture costs the memory of its longer side: resizing keeps a row of weights for each of its pixels.
# 65,535 is the most that JPEG and GIF can express.
MAX_IMAGE_SIDE = 65_535

_UPRIGHT = {  # EXIF orientation to what undoes it; 1 is upright
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
    """Returns the formats that are always read, and those of `FURTHER_FORMATS` that were asked for.

    Raises:
        ValueError: What one of them is read with is not installed.
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

    The first frame is taken, EXIF orientation is applied, and the result is RGB: palettes are looked up,
    alpha is dropped, CMYK is converted without its profile. Two deliberate differences: 16-bit greyscale is
    scaled to 8 bits, where the reference clips at 255 and so turns most of the picture white; and metadata
    too broken to read leaves the picture as it is, where the reference fails.
    """

    def __init__(self, *, max_bytes: int, max_pixels: int, formats: Sequence[str] = IMAGE_FORMATS) -> None:
        self.max_bytes = max_bytes
        self.max_pixels = max_pixels
        self._formats = tuple(formats)
        # Both belong to the process, so they are set here, once, before threads decode. Pillow's own limit is
        # the second line: it merely warns up to twice its value, and has to let other decoders' images pass.
        Image.MAX_IMAGE_PIXELS = max(max_pixels, Image.MAX_IMAGE_PIXELS or 0)
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged metadata in strangers' files

    def decode(self, content: bytes) -> Image.Image:
        """Returns the picture, upright and in mode RGB.

        Raises:
            ImageUnreadable: The bytes are of none of the formats, or are broken or incomplete.
            ImageTooLarge: There are more bytes or pixels than the limits allow, or more parts than any real
                file has.
        """
        return draw(self.read(content))

    def read(self, content: bytes) -> Picture:
        """Finds the picture in a file, in bounded time, and in little more memory than the file's.

        Raises:
            ImageUnreadable: As `decode`, but for what is wrong with the pixels.
            ImageTooLarge: As `decode`.
        """
        if not content:
            raise ImageUnreadable("image is empty; send the bytes of an image file")
        if len(content) > self.max_bytes:
            raise ImageTooLarge(f"image has {len(content)} bytes, limit {self.max_bytes}; send a smaller one")
        return read_picture(content, self.check_size, self._formats)

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
    """Decodes a picture of checked size; it comes out upright and in mode RGB.

    Raises:
        ImageUnreadable: It is broken or incomplete, or needs more memory than there is.
    """
    image = None
    if picture.format == "HEIF":
        heif.register()
    if picture.format == "AVIF":
        _keep_avif_to_one_thread()
    with suppress(Exception):  # every one: decoders raise far more than OSError on broken files
        image = Image.open(BytesIO(picture.content), formats=[picture.format])
        return _drawn(image, picture)
    if image is not None:
        image.close()
    # Outside of the block, or the error would keep the other one, whose traceback keeps the picture.
    raise ImageUnreadable("image is broken or incomplete; it does not decode")


@cache
def _keep_avif_to_one_thread() -> None:
    from PIL import AvifImagePlugin  # loads its decoder, which the server's own process does without

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # other threads decode other images


def _drawn(image: ImageFile, picture: Picture) -> Image.Image:
    if image.size != (picture.width, picture.height):
        raise ValueError("Pillow reads another size than was checked")
    image.tile = [
        tile._replace(codec_name=run_lengths.NAME) if tile.codec_name == run_lengths.PILLOWS_NAME else tile
        for tile in image.tile
    ]
    image.load()
    if image.size != (picture.width, picture.height):  # libheif may find out while it decodes
        raise ValueError("the picture has another size than was checked")
    image.info.pop("transparency", None)  # it changes no pixel of RGB, and converting it can fail
    if picture.orientation in _UPRIGHT:
        return _to_rgb(image.transpose(_UPRIGHT[picture.orientation]))
    return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = image.convert("I").point(_TO_8_BITS, "L")
    return image if image.mode == "RGB" else image.convert("RGB")
