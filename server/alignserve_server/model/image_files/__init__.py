"""Reads what image files say of themselves in bounded time and memory, and leaves out what makes no pixel."""

from __future__ import annotations

import struct
from contextlib import suppress

from alignserve_server.errors import ImageUnreadable
from alignserve_server.model.image_files import bmp, gif, jpeg, png, webp
from alignserve_server.model.image_files.picture import CheckSize, Picture, unreadable

__all__ = ["IMAGE_FORMATS", "Picture", "read_picture"]

# Few on purpose: every further decoder is further code that strangers' bytes reach. A JPEG may hold several
# pictures (MPO, as phones write them); the first counts, as it does of an animation.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


def read_picture(content: bytes, check_size: CheckSize) -> Picture:
    """Finds the picture in a file, whose size is checked before anything is copied or allocated.

    Raises:
        ImageUnreadable: It is none of `IMAGE_FORMATS`, or its parts do not fit together; or by `check_size`.
        ImageTooLarge: It has more parts than any real file; or by `check_size`.
    """
    with suppress(IndexError, struct.error):  # the file ends where more was announced
        if content.startswith(jpeg.SIGNATURE):
            return jpeg.read(content, check_size)
        if content.startswith(png.SIGNATURE):
            return png.read(content, check_size)
        if content.startswith(gif.SIGNATURES):
            return gif.read(content, check_size)
        if content.startswith(bmp.SIGNATURE):
            return bmp.read(content, check_size)
        if webp.is_webp(content):
            return webp.read(content, check_size)
        raise ImageUnreadable(f"image is none of {', '.join(IMAGE_FORMATS)}")
    # Outside of the block, or the error would keep the other one, whose traceback keeps the content.
    raise unreadable()
