"""The pictures of a contact sheet: thumbnails, or small files as they are without Pillow."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes, urlsplit

from alignserve._images import ImageInput
from alignserve.search.sheet import Picture

if TYPE_CHECKING:
    from alignserve.curate.pictures import PictureProcesses

PATH_COLUMN = "path"  # of a store: the file of a row's image, or its `file:` URL

_THUMBNAIL_SIDE = 384  # pixels; cards are about half as wide, and screens have two pixels for one
_MAX_FILE_BYTES = 256 << 10  # of a file that is embedded as it is
_MAX_TOTAL_BYTES = 48 << 20  # of all pictures
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
        folder: With the pictures: a key or a relative path is a path below it. By default only absolute paths
            are read.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._left = _MAX_TOTAL_BYTES
        self._open = ExitStack()
        self._processes: PictureProcesses | None = None
        if importlib.util.find_spec("PIL") is not None:
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
        file = self._file(key, columns)
        if file is None:
            return None, "no picture in the store"
        try:
            if not file.is_file():
                return None, f"{file} is not there"
            return self._small(file)
        except (OSError, ValueError) as error:
            return None, f"{file} cannot be read: {error}"

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
            file = _path_of(path)
            if file.is_absolute():
                return file
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
            return None, "no thumbnail: pip install 'alignserve[curate]'"
        return self._fitting(Picture(media_type, content))

    def _fitting(self, picture: Picture) -> tuple[Picture | None, str]:
        if len(picture.content) > self._left:
            return None, f"left out: the sheet has {_MAX_TOTAL_BYTES >> 20} MB of pictures already"
        self._left -= len(picture.content)
        return picture, ""


def media_type_of(content: bytes) -> str | None:
    """Returns the media type of a picture that every browser shows, by its first bytes; `None` for others."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((name for signature, name in _SIGNATURES if content.startswith(signature)), None)


def _path_of(text: str) -> Path:
    """Returns the path that a column names; a `file:` URL has the bytes of a name that is not UTF-8."""
    if not text.startswith("file:"):
        return Path(text)
    return Path(unquote_to_bytes(urlsplit(text).path).decode("utf-8", "surrogateescape"))


def _below(folder: Path, file: Path) -> Path | None:
    """Returns a file in a folder; `None` if its path leads out of it."""
    inside = (folder / file).resolve()
    return inside if inside.is_relative_to(folder.resolve()) else None


def _start_of(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(_MAX_FILE_BYTES + 1)
