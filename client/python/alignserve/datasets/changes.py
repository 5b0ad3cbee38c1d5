"""The sources of a job as its manifest has them, and which of them have changed since."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from alignserve.datasets.source import BrokenSourceError, SourceFile
from alignserve.datasets.sources.unreadable import UNREADABLE


def stated(files: Sequence[SourceFile]) -> list[dict[str, str | None]]:
    """Returns the names and digests of source files; a digest is `None` if the file cannot be read."""
    return [{"name": file.name, "digest": _digest(file)} for file in files]


def changed(before: Sequence[Mapping[str, str | None]], files: Sequence[SourceFile]) -> Iterator[str]:
    """Yields a problem for each source file that differs from what a manifest has stated of it."""
    for source, file in zip(before, files, strict=True):
        if source["digest"] not in (None, _digest(file)):
            yield f"source {source['name']} has changed during the run; its rows may be of both versions"


def _digest(file: SourceFile) -> str | None:
    try:
        digest = file.digest()
    except (OSError, BrokenSourceError):  # its rows will say so
        return None
    return None if digest == UNREADABLE else digest
