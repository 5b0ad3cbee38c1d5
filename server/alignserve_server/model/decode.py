"""Untrusted bytes become RGB pixels, or an error that names what is wrong with them."""

from __future__ import annotations

import warnings
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image

from alignserve_server.errors import ImageTooLarge, ImageUnreadable

# Few on purpose: every further decoder is further code that strangers' bytes reach. A JPEG may hold several
# pictures (MPO, as phones write them); the first counts, as it does of an animation.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

_UPRIGHT = {  # EXIF orientation to what undoes it; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageDecoder:
    """Decodes images as `transformers.image_utils.load_image` does, within limits.

    The first frame is taken, EXIF orientation is applied, and the result is RGB: palettes are looked up,
    alpha is dropped, CMYK is converted without its profile. Two deliberate differences: 16-bit greyscale is
    scaled to 8 bits, where the reference clips at 255 and so turns most of the picture white; and metadata
    too broken to read leaves the picture as it is, where the reference fails.
    """

    def __init__(self, *, max_bytes: int, max_pixels: int) -> None:
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        # Both belong to the process, so they are set here, once, before threads decode. Pillow's own limit
        # merely warns up to twice its value; `check_size` is stricter and comes before pixels are allocated.
        Image.MAX_IMAGE_PIXELS = None
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged metadata in strangers' files

    def decode(self, content: bytes) -> Image.Image:
        """Returns the picture, upright and in mode RGB.

        Raises:
            ImageUnreadable: The bytes are not of `IMAGE_FORMATS`, or are broken or incomplete.
            ImageTooLarge: There are more bytes or pixels than the limits allow.
        """
        if not content:
            raise ImageUnreadable("image is empty; send the bytes of an image file")
        if len(content) > self._max_bytes:
            raise ImageTooLarge(
                f"image has {len(content)} bytes, limit {self._max_bytes}; send a smaller one"
            )
        with _open(content) as image:
            self.check_size(*image.size)
            return _load(image)

    def check_size(self, width: int, height: int, what: str = "image") -> None:
        """Raises ImageTooLarge or, if a side is empty, ImageUnreadable."""
        if min(width, height) < 1:
            raise ImageUnreadable(f"{what} has no pixels: {width} x {height}")
        if width * height > self._max_pixels:
            raise ImageTooLarge(
                f"{what} has {width} x {height} = {width * height} pixels, limit {self._max_pixels}; "
                "send a smaller one"
            )


def _open(content: bytes) -> Image.Image:
    # Every Exception, here and in _load: decoders raise far more than OSError on broken files.
    try:
        return Image.open(BytesIO(content), formats=IMAGE_FORMATS)
    except Exception as error:
        accepted = ", ".join(IMAGE_FORMATS)
        raise ImageUnreadable(f"image is none of {accepted}, or its header is broken") from error


def _load(image: Image.Image) -> Image.Image:
    try:
        image.load()
        image.info.pop("transparency", None)  # it changes no pixel of RGB, and converting it can fail
        return _to_rgb(_upright(image))
    except Exception as error:
        raise ImageUnreadable("image is broken or incomplete; it opens but does not decode") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 — metadata can be broken in as many ways, and the picture is fine
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray(np.clip((wide + 128) // 257, 0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")
