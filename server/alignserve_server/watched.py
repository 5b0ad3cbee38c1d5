"""Files that are read again when they change, without a restart."""

from __future__ import annotations

import hashlib
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_INTERVAL_SECONDS = 1.0  # between looks


class WatchedFiles:
    """Says when any of some files has changed, by looking now and then."""

    def __init__(self, paths: Sequence[Path], clock: Callable[[], float] = time.monotonic) -> None:
        self._paths = paths
        self._clock = clock
        self._looked_at = clock()
        self._seen: list[object] | None = self._contents()

    def have_changed(self) -> bool:
        """Says whether they have changed since they last had; looks once a second at the most."""
        now = self._clock()
        if now - self._looked_at < _INTERVAL_SECONDS:
            return False
        self._looked_at = now
        contents = self._contents()
        has_changed = contents != self._seen
        self._seen = contents
        return has_changed

    def look_again(self) -> None:
        """Has the next look find a change: what the last one found could not be used."""
        self._seen = None

    def _contents(self) -> list[object]:
        return [_content(path) for path in self._paths]


def _content(path: Path) -> object:
    """Returns what differs when a file's content does, of what a link leads to; None if it cannot be read."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return found.st_ino  # what comes through a pipe is there once
        # Times and sizes miss a change that follows another within a tick of the file system's clock, and a
        # copy that keeps the old time.
        return hashlib.blake2b(path.read_bytes()).digest()
    except OSError:
        return None
