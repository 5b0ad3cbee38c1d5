"""Finds out whether a folder lies inside a source, by whatever name or link it is reached."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path

from alignserve.datasets.sources.globs import expand, is_pattern
from alignserve.datasets.walk import Walk


def source_around(folder: Path, sources: Sequence[str | Path]) -> str | None:
    """Returns the source that contains a folder, or would contain it once it exists; `None` if none does.

    Args:
        folder: May not exist yet.
        sources: Paths of files and folders, and patterns of such paths.
    """
    where = folder.resolve()
    around = {_identity(path) for path in (where, *where.parents)} - {None}
    for source in (os.fspath(source) for source in sources):
        if not is_pattern(Path(source)):
            if _identity(source) in around:
                return source
            continue
        # Not by `glob`, which follows links to folders, and so their loops.
        if any(_identity(path) in around for path in expand(Path(source), Walk())):
            return source
        pattern = os.path.abspath(source)  # noqa: PTH100 — a pattern, whose links must not be resolved
        if fnmatch.fnmatch(os.path.abspath(folder), pattern):  # noqa: PTH100
            return source
    return None


def _identity(path: str | Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 — of many files
    except OSError:
        return None
    return status.st_dev, status.st_ino
