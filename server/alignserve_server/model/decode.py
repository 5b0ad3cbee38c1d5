"""Untrusted bytes become RGB pixels, or an error that names what is wrong with them."""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterator
from io import BytesIO

from PIL import ExifTags, Image

from alignserve_server.errors import ImageTooLarge, ImageUnreadable

# Few on purpose: every further decoder is further code that strangers' bytes reach. A JPEG may hold several
# pictures (MPO, as phones write them); the first counts, as it does of an animation.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

# A thin picture costs the memory of its longer side: resizing keeps a row of weights for each of its pixels.
# 65,535 is the most that JPEG and GIF can express.
MAX_IMAGE_SIDE = 65_535

# What a decoder does for each part of a file takes time that neither bytes nor pixels bound, and a decode
# cannot be cancelled. Each limit is ten times what cameras and editors write.
_MAX_PARTS = 32_768  # JPEG segments before the first scan, PNG chunks: about 1 µs each
_MAX_JPEG_SCANS = 100  # each passes over all the pixels, some 10 ms at 25 million, and can be 60 bytes long
_MAX_PNG_METADATA = 256  # chunks, of which each can inflate to 1 MB

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
            ImageTooLarge: There are more bytes or pixels than the limits allow, or more parts than any real
                file has.
        """
        if not content:
            raise ImageUnreadable("image is empty; send the bytes of an image file")
        if len(content) > self._max_bytes:
            raise ImageTooLarge(
                f"image has {len(content)} bytes, limit {self._max_bytes}; send a smaller one"
            )
        _check_structure(content)
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
        if max(width, height) > MAX_IMAGE_SIDE:
            side, length = ("width", width) if width > height else ("height", height)
            raise ImageTooLarge(
                f"{what} has a {side} of {length}, limit {MAX_IMAGE_SIDE}; send a smaller one"
            )


def _check_structure(content: bytes) -> None:
    """Raises ImageTooLarge for what would take a decoder long however small the file and the picture."""
    # The other formats need no such check: of an animation only the first frame is decoded.
    if content.startswith(_JPEG_SIGNATURE):
        _check_jpeg(content)
    elif content.startswith(_PNG_SIGNATURE):
        _check_png(content)


_JPEG_SIGNATURE = b"\xff\xd8"
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
_JPEG_SEGMENT = re.compile(
    rb"\xff[\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe]"
)  # the end, and all that tell their length


def _check_jpeg(content: bytes) -> None:
    # Counting two bytes is quick but finds them in metadata too, and in the film that a phone appends. So
    # it can only acquit; to convict, the segments themselves are counted.
    may_have_many_scans = content.count(_JPEG_SCAN) > _MAX_JPEG_SCANS
    parts = scans = 0
    for marker, padding in _jpeg_segments(content):
        if not scans:
            parts += 1 + padding  # Pillow steps over padding byte by byte
            _check_count("segments and padding", parts, _MAX_PARTS)
        elif marker == _JPEG_END or not may_have_many_scans:
            return
        scans += marker == _JPEG_SCAN
        _check_count("scans", scans, _MAX_JPEG_SCANS)


def _jpeg_segments(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Yields each segment's marker, as libjpeg finds it, and the number of bytes skipped to come there."""
    end = 0
    while found := _JPEG_SEGMENT.search(content, end):
        yield found[0], found.start() - end
        end = found.end()
        if found[0] != _JPEG_END:
            end += max(2, int.from_bytes(content[end : end + 2], "big"))
    yield _JPEG_END, max(0, len(content) - end)


_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNK = struct.Struct(">I4s")  # length of the data, kind; data and a checksum follow
_PNG_ANIMATION = (b"fcTL", b"fdAT")


def _check_png(content: bytes) -> None:
    start, parts, metadata = len(_PNG_SIGNATURE), 0, 0
    while start + _PNG_CHUNK.size <= len(content):
        length, kind = _PNG_CHUNK.unpack_from(content, start)
        start += _PNG_CHUNK.size + length + 4
        parts += 1
        metadata += kind[:1].islower() and kind not in _PNG_ANIMATION
        _check_count("chunks", parts, _MAX_PARTS)
        _check_count("metadata chunks", metadata, _MAX_PNG_METADATA)


def _check_count(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise ImageTooLarge(f"image has more than {limit} {what}, the limit; save it anew, without metadata")


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
        image = image.convert("I").point(_TO_8_BITS, "L")
    return image if image.mode == "RGB" else image.convert("RGB")
