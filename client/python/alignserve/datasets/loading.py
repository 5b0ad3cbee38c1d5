"""Reads rows in chunks: the rows one after the other, the files that they name side by side in threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from alignserve.datasets.paths import path_text
from alignserve.datasets.row import Row
from alignserve.datasets.shards import ShardEnd
from alignserve.datasets.sources.rows import RowError, image_in

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
            return replace(event, image=image_in(str(event.image), self._max_image_bytes))
        except RowError as error:
            return replace(event, image=None, failure=event.failure or error.failure)


def _path_of(event: Row | ShardEnd) -> str | None:
    if isinstance(event, ShardEnd) or not isinstance(event.image, Path):
        return None
    return path_text(event.image)
