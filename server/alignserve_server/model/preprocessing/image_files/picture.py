"""The picture in an image file, separated from its container, with its orientation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from alignserve_server.errors import ImageTooLarge, ImageUnreadable

# Decoders spend time on each part of a file, which limits on bytes and pixels do not bound. Ten times as many
# parts as cameras and editors write.
MAX_PARTS = 32_768

CheckSize: TypeAlias = Callable[[int, int], None]  # (width, height); raises ImageTooLarge, ImageUnreadable


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of checked size, in the smallest file that decodes to the same pixels.

    Metadata, further frames and other content would cost Pillow time, or make it fail, for no benefit.
    """

    format: str  # Pillow's name for it
    width: int
    height: int
    content: bytes
    orientation: int | None = None  # from EXIF, or from XMP if EXIF has none
    holds_gil: bool = False  # Pillow decodes it without releasing the GIL
    needs_process: bool = (
        False  # its decoder never runs in the server's own process, even for a small picture
    )

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) of the upright picture."""
        is_on_its_side = self.orientation in range(5, 9)
        return (self.width, self.height) if is_on_its_side else (self.height, self.width)


def check_count(what: str, count: int, limit: int = MAX_PARTS) -> None:
    """Raises ImageTooLarge if a file has more parts of a kind than any program writes."""
    if count > limit:
        raise ImageTooLarge(f"image has more than {limit} {what}, the limit; save it again, without metadata")


def unreadable() -> ImageUnreadable:
    """Returns the error for a file that does not match its signature."""
    return ImageUnreadable("image is broken or incomplete: its header does not fit the file")
