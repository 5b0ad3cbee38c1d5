"""What is left of an image file once its container has been read: the picture's part, and how to hold it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from alignserve_server.errors import ImageTooLarge, ImageUnreadable

# What a decoder does for each part of a file takes time that neither bytes nor pixels bound. Ten times what
# cameras and editors write.
MAX_PARTS = 32_768

CheckSize: TypeAlias = Callable[[int, int], None]  # (width, height); raises ImageTooLarge, ImageUnreadable


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, of a size that was checked, in the smallest file that decodes to the same pixels.

    Metadata, further frames and whatever else a file may hold cost Pillow time, or make it fail, for nothing.
    """

    format: str  # one of Pillow's names
    width: int
    height: int
    content: bytes
    orientation: int | None = None  # of EXIF, or else of XMP
    holds_gil: bool = False  # Pillow decodes it without ever letting other threads run
    needs_process: bool = False  # its decoder is kept out of the server's own process, however small it is

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) once it is held as it should be."""
        is_on_its_side = self.orientation in range(5, 9)
        return (self.width, self.height) if is_on_its_side else (self.height, self.width)


def check_count(what: str, count: int, limit: int = MAX_PARTS) -> None:
    """Raises ImageTooLarge if a file has more parts of a kind than any program writes."""
    if count > limit:
        raise ImageTooLarge(f"image has more than {limit} {what}, the limit; save it anew, without metadata")


def unreadable() -> ImageUnreadable:
    """Builds the error of a file that is not what its first bytes say."""
    return ImageUnreadable("image is broken or incomplete: its header does not fit the file")
