"""Reads rows in chunks: the rows one after the other, the files that they name side by side in threads."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from alignserve.datasets.row import Row, RowFailure
from alignserve.datasets.shards import ShardEnd

_CHUNK_ROWS = 32  # few enough to bound their images, enough to make the hand-over between threads cheap
_CHUNK_BYTES = 16 << 20  # of images that come with their rows


class Loader:
    """Loads the images of rows; a context manager, which ends its threads.

    Args:
        events: Rows, and the ends of shards, each with the number of its file; read by one thread at a time.
        max_image_bytes: Larger files are not read, and their rows fail.
        threads: That read files.
    """

    def __init__(
        self, events: Iterator[tuple[int, Row | ShardEnd]], *, max_image_bytes: int, threads: int
    ) -> None:
        self._events = events
        self._max_image_bytes = max_image_bytes
        self._files = ThreadPoolExecutor(threads, "alignserve-files")

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.shutdown(cancel_futures=True)

    def next_chunk(self) -> list[tuple[int, Row | ShardEnd, str | None]]:
        """Returns the next rows with their images as bytes, and the paths of these; empty at the end."""
        chunk, size = [], 0
        for file, event in self._events:
            chunk.append((file, event))
            size += len(event.image) if isinstance(event, Row) and isinstance(event.image, bytes) else 0
            if len(chunk) == _CHUNK_ROWS or size >= _CHUNK_BYTES:
                break
        loaded = self._files.map(lambda event: self._loaded(event[1]), chunk)
        return [(file, row, _path_of(event)) for (file, event), row in zip(chunk, loaded, strict=True)]

    def _loaded(self, event: Row | ShardEnd) -> Row | ShardEnd:
        if isinstance(event, ShardEnd) or not isinstance(event.image, Path):
            return event
        try:
            status = event.image.stat()
            if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
                failure = RowFailure("FILE_UNREADABLE", f"{event.image} is not a regular file")
            elif status.st_size > self._max_image_bytes:
                size = f"{status.st_size} bytes, but the server takes {self._max_image_bytes}"
                failure = RowFailure("IMAGE_TOO_LARGE", f"the image has {size}")
            else:
                return replace(event, image=event.image.read_bytes())
        except OSError as error:
            failure = RowFailure("FILE_UNREADABLE", str(error))
        return replace(event, image=None, failure=event.failure or failure)


def _path_of(event: Row | ShardEnd) -> str | None:
    if isinstance(event, ShardEnd) or not isinstance(event.image, Path):
        return None
    return os.fsencode(event.image).decode(errors="backslashreplace")
