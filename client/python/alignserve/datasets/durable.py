"""Files that survive a crash whole: written under another name, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_DRAFT_SUFFIX = ".draft"


def write_json(path: Path, value: Any) -> None:
    """Replaces a file by a JSON document; after a crash it has the old content or the new one."""
    write_lines(path, [json.dumps(value, indent=1)])


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Replaces a file by lines of ASCII; see `write_json`."""
    draft = path.with_name(path.name + _DRAFT_SUFFIX)
    try:
        with draft.open("w", encoding="ascii") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    sync(path.parent)


def move(draft: Path, path: Path) -> None:
    """Renames a complete file to its final name, after its content has reached the disk."""
    sync(draft)
    draft.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's names, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
