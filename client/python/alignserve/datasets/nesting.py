"""Finds out whether a folder lies inside a source, by whatever name or link it is reached."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path


def source_around(folder: Path, sources: Sequence[str | Path]) -> str | None:
    """Returns the source that contains a folder, or would contain it once it exists; `None` if none does.

    Args:
        folder: May not exist yet.
        sources: Paths of files and folders, and patterns of such paths.
    """
    where = folder.resolve()
    around = {_identity(path) for path in (where, *where.parents)} - {None}
    for source in (os.fspath(source) for source in sources):
        for path in _folders(source):
            if _identity(path) in around:
                return source
        pattern = os.path.abspath(source)  # noqa: PTH100 — a pattern, whose links must not be resolved
        if glob.has_magic(source) and fnmatch.fnmatch(os.path.abspath(folder), pattern):  # noqa: PTH100
            return source
    return None


def _folders(source: str) -> Iterator[Path]:
    path = Path(source)
    if os.path.isdir(source):  # noqa: PTH112 — `Path.is_dir` raises where permission is missing
        yield path
    elif glob.has_magic(source):
        for match in glob.iglob(source, recursive=True):  # noqa: PTH207 — the source may be absolute
            if os.path.isdir(match):  # noqa: PTH112
                yield Path(match)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
