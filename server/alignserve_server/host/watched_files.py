"""Files that are reloaded when they change, without a restart."""

from __future__ import annotations

import errno
import hashlib
import os
import select
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_INTERVAL_SECONDS = 1.0  # between checks
_LARGEST_BYTES = 64 << 20  # a hundred thousand keys take a third of it
_CHUNK_BYTES = 1 << 16


class WatchedFiles:
    """Detects changes of files by polling."""

    def __init__(self, paths: Sequence[Path], clock: Callable[[], float] = time.monotonic) -> None:
        self._paths = paths
        self._clock = clock
        self._checked_at = clock()
        self._seen: list[object] | None = self._contents()

    def have_changed(self) -> bool:
        """Returns whether a file has changed since the last reported change; checks at most once a second."""
        now = self._clock()
        if now - self._checked_at < _INTERVAL_SECONDS:
            return False
        self._checked_at = now
        contents = self._contents()
        has_changed = contents != self._seen
        self._seen = contents
        return has_changed

    def invalidate(self) -> None:
        """Forces the next check to report a change: the last content could not be used."""
        self._seen = None

    def _contents(self) -> list[object]:
        return [_content(path) for path in self._paths]


def read_whole(path: Path, *, pipe_seconds: float) -> bytes:
    """Reads a file of keys or certificates, which may have been replaced by something that is not a file.

    Args:
        path: A file; or a pipe, such as a shell's `<(…)`, which is read until its writer closes it.
        pipe_seconds: Maximum wait for each chunk from a pipe.

    Raises:
        OSError: It cannot be read, is a device, is too large, or is a pipe without a writer.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # otherwise it would wait for a pipe's writer
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 — a descriptor
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISDIR(mode)):
            raise OSError(errno.EINVAL, "it is a device, not a file")
        content = bytearray()
        while len(content) <= _LARGEST_BYTES:
            if stat.S_ISFIFO(mode) and not select.select([file], [], [], pipe_seconds)[0]:
                raise OSError(errno.ETIMEDOUT, f"nothing was written to the pipe for {pipe_seconds:g} s")
            chunk = file.read(_CHUNK_BYTES)
            if not chunk:
                return bytes(content)
            content += chunk
    raise OSError(errno.EFBIG, f"it is larger than {_LARGEST_BYTES} bytes")


def _content(path: Path) -> object:
    """Returns a value that changes with the content of a file, following links; None if it is unreadable."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return found.st_ino  # the content of a pipe can be read only once
        # Times and sizes miss a change that follows another within a tick of the file system's clock, and a
        # copy that keeps the old time.
        return hashlib.blake2b(read_whole(path, pipe_seconds=0.0)).digest()
    except OSError:
        return None
