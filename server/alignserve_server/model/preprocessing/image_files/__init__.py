"""Reads what image files say of themselves in bounded time and memory, and leaves out what makes no pixel."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from alignserve_server.errors import ImageUnreadable
from alignserve_server.model.preprocessing.image_files import bmp, gif, isobmff, jpeg, png, tiff, webp
from alignserve_server.model.preprocessing.image_files.picture import CheckSize, Picture, unreadable
from alignserve_server.model.preprocessing.image_files.signatures import format_of

__all__ = ["FURTHER_FORMATS", "IMAGE_FORMATS", "Picture", "read_picture"]

# Few on purpose: every further decoder is further code that strangers' bytes reach. A JPEG may hold several
# pictures (MPO, as phones write them); the first counts, as it does of an animation.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
FURTHER_FORMATS = ("AVIF", "TIFF", "HEIC")  # for an operator to turn on, by `image_formats`

_READERS: Mapping[str, Callable[[bytes, CheckSize], Picture]] = {
    "JPEG": jpeg.read,
    "PNG": png.read,
    "WEBP": webp.read,
    "GIF": gif.read,
    "BMP": bmp.read,
    "AVIF": isobmff.read_avif,
    "TIFF": tiff.read,
    "HEIC": isobmff.read_heic,
}


def read_picture(content: bytes, check_size: CheckSize, formats: Sequence[str] = IMAGE_FORMATS) -> Picture:
    """Finds the picture in a file, whose size is checked before anything is copied or allocated.

    Raises:
        ImageUnreadable: It is none of `formats`, or its parts do not fit together; or by `check_size`.
        ImageTooLarge: It has more parts than any real file; or by `check_size`.
    """
    name = format_of(content)
    if name is None or name not in formats:
        raise ImageUnreadable(_refusal(name, formats))
    with suppress(IndexError, OverflowError, struct.error):  # the file ends where more was announced
        return _READERS[name](content, check_size)
    # Outside of the block, or the error would keep the other one, whose traceback keeps the content.
    raise unreadable()


def _refusal(name: str | None, formats: Sequence[str]) -> str:
    accepted = ", ".join(formats)
    if name is None:
        return f"image is none of {accepted}"
    if name == "HTML":
        return "image is HTML, a web page; send the image itself"
    if name not in FURTHER_FORMATS:
        return f"image is {name}, and this server reads {accepted}; convert it to JPEG or PNG"
    suffix = name.lower()
    return (
        f"image is {name}, and this server reads {accepted}; convert it, for example by "
        f"'magick photo.{suffix} photo.jpg', or ask the operator for --extra-image-formats {suffix}"
    )
