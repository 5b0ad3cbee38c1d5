"""Files that are read again when they change, without a restart."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

_INTERVAL_SECONDS = 1.0  # between looks

_Signature: TypeAlias = tuple[int, int, int]


class WatchedFiles:
    """Says when any of some files has changed, by looking now and then."""

    def __init__(self, paths: Sequence[Path], clock: Callable[[], float] = time.monotonic) -> None:
        self._paths = paths
        self._clock = clock
        self._looked_at = clock()
        self._seen: list[_Signature | None] | None = self._signature()

    def have_changed(self) -> bool:
        """Says whether they have changed since they last had; looks once a second at the most."""
        now = self._clock()
        if now - self._looked_at < _INTERVAL_SECONDS:
            return False
        self._looked_at = now
        signature = self._signature()
        has_changed = signature != self._seen
        self._seen = signature
        return has_changed

    def look_again(self) -> None:
        """Has the next look find a change: what the last one found could not be used."""
        self._seen = None

    def _signature(self) -> list[_Signature | None]:
        return [_signature(path) for path in self._paths]


def _signature(path: Path) -> _Signature | None:
    try:
        found = path.stat()  # of what a link leads to, which is how Kubernetes swaps secrets
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
