"""The pictures of a contact sheet: thumbnails, or small files as they are without Pillow."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from alignserve._images import ImageInput
from alignserve.datasets.paths import path_of
from alignserve.search.sheet import Picture

if TYPE_CHECKING:
    from alignserve.curate.pictures import PictureProcesses

PATH_COLUMN = "path"  # of a store: the file of a row's image, or its `file:` URL

_THUMBNAIL_SIDE = 384  # pixels; cards are about half as wide, and screens have two pixels for one
_MAX_FILE_BYTES = 256 << 10  # of a file that is embedded as it is
_SIGNATURES = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
)


class SheetPictures:
    """Finds and shrinks pictures, within a total size.

    Args:
        folder: With the pictures: a key or a relative path is a path below it, and so is the key of a picture
            that has moved from its absolute path. By default only absolute paths are read.
        makes_thumbnails: Whether pictures are decoded, in a child process; by default if Pillow is installed.
        max_total_bytes: Of all pictures together.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        makes_thumbnails: bool | None = None,
        max_total_bytes: int = 48 << 20,
    ) -> None:
        self._folder = folder
        self._limit = self._left = max_total_bytes
        self._open = ExitStack()
        self._processes: PictureProcesses | None = None
        if makes_thumbnails is None:
            makes_thumbnails = importlib.util.find_spec("PIL") is not None
        if makes_thumbnails:
            from alignserve.curate.pictures import PictureProcesses

            self._processes = self._open.enter_context(PictureProcesses(processes=1))

    def __enter__(self) -> SheetPictures:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the process that decodes."""
        self._open.close()

    def of_row(self, key: str, columns: Mapping[str, Any]) -> tuple[Picture | None, str]:
        """Returns the picture of a row, or `None` and why there is none."""
        try:
            file = self._file(key, columns)
            if file is None:
                return None, "no picture in the store"
            return self._small(file) if file.is_file() else (None, f"{file} is not there")
        except (OSError, ValueError) as error:  # ValueError: a key that cannot be a file's name
            return None, f"it cannot be read: {error}"

    def of_image(self, image: ImageInput) -> Picture | None:
        """Returns a picture of the query: a path or the bytes of a file; `None` if it cannot be shown."""
        if not isinstance(image, (Path, bytes)):
            return None
        try:
            return self._small(image)[0]
        except OSError:
            return None

    def _file(self, key: str, columns: Mapping[str, Any]) -> Path | None:
        path = columns.get(PATH_COLUMN)
        if isinstance(path, str):
            file = path_of(path)
            if file.is_absolute():
                moved = None if self._folder is None or file.is_file() else _below(self._folder, Path(key))
                return moved or file
            return None if self._folder is None else _below(self._folder, file)
        return None if self._folder is None else _below(self._folder, Path(key))

    def _small(self, image: Path | bytes) -> tuple[Picture | None, str]:
        if self._processes is not None:
            jpeg = self._processes.thumbnail(image, _THUMBNAIL_SIDE)
            return (
                (None, "it cannot be decoded") if jpeg is None else self._fitting(Picture("image/jpeg", jpeg))
            )
        content = image if isinstance(image, bytes) else _start_of(image)
        media_type = media_type_of(content)
        if media_type is None:
            return None, "it is not a picture that browsers show"
        if len(content) > _MAX_FILE_BYTES:
            return None, "no thumbnail, since Pillow is not installed: pip install pillow"
        return self._fitting(Picture(media_type, content))

    def _fitting(self, picture: Picture) -> tuple[Picture | None, str]:
        if len(picture.content) > self._left:
            return None, f"left out: the pictures of a sheet have at most {self._limit >> 20} MB"
        self._left -= len(picture.content)
        return picture, ""


def media_type_of(content: bytes) -> str | None:
    """Returns the media type of a picture that every browser shows, by its first bytes; `None` for others."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((name for signature, name in _SIGNATURES if content.startswith(signature)), None)


def _below(folder: Path, file: Path) -> Path | None:
    """Returns a file in a folder; `None` if its path leads out of it."""
    inside = (folder / file).resolve()
    return inside if inside.is_relative_to(folder.resolve()) else None


def _start_of(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(_MAX_FILE_BYTES + 1)
