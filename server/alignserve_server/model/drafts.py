"""Creates folders atomically: as drafts next to their destination, locked while they are written.

If a process is killed while it writes, or the disk is full, its draft stays behind unlocked; the next process
that creates a draft there removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_UNLOCKED_PREFIX = "alignserve-"
_PREFIX = f"{_UNLOCKED_PREFIX}draft-"
_MAX_ATTEMPTS = 5  # other processes may install theirs in between


@contextmanager
def draft_folder(parent: Path) -> Iterator[Path]:
    """Yields a new folder in `parent`, and finally removes it unless `install` has moved it.

    Raises:
        OSError: It cannot be created.
    """
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent)
    unlocked = Path(tempfile.mkdtemp(prefix=_UNLOCKED_PREFIX, dir=parent))
    descriptor = os.open(unlocked, os.O_RDONLY)
    _lock(descriptor)
    # Named only once it is locked, so that no draft is mistaken for an abandoned one.
    draft = unlocked.rename(unlocked.with_name(unlocked.name.replace(_UNLOCKED_PREFIX, _PREFIX)))
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(descriptor)


def is_draft(path: Path) -> bool:
    """Returns whether a path has the name of a draft, abandoned or not."""
    return path.name.startswith(_UNLOCKED_PREFIX)


def install(draft: Path, folder: Path, *, is_usable: Callable[[Path], bool]) -> None:
    """Moves a draft to its destination after syncing it to disk; replaces an existing folder if not usable.

    Raises:
        OSError: It cannot be written or moved.
    """
    for path in [*draft.rglob("*"), draft]:
        _sync(path)
    for attempts_left in reversed(range(_MAX_ATTEMPTS)):
        if _moved(draft, folder):
            break
        if is_usable(folder):  # another process was first, with the same result
            return
        if not attempts_left:
            raise FileExistsError(errno.EEXIST, "other processes keep replacing it", str(folder))
        with (
            draft_folder(folder.parent) as aside,
            suppress(FileNotFoundError),
        ):  # another process has moved it
            folder.rename(aside / folder.name)
    _sync(folder.parent)


def move_into(draft: Path, folder: Path, *, first: str, last: str) -> None:
    """Moves the files of a draft into a folder that cannot be replaced.

    `first` is moved before all others, so that the folder of a killed process is recognized, and `last` after
    them, so that it is not mistaken for complete.

    Raises:
        OSError: They cannot be written or moved.
    """
    for path in draft.rglob("*"):
        _sync(path)
    (folder / last).unlink(missing_ok=True)
    for path in sorted(draft.iterdir(), key=lambda path: (path.name == last) - (path.name == first)):
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.rename(target)
    _sync(folder)


def _moved(draft: Path, folder: Path) -> bool:
    """Moves a draft to its destination; returns False if there is already a folder."""
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        return False
    return True


def _remove_abandoned(parent: Path) -> None:
    for draft in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            descriptor = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if _lock(descriptor):
                    shutil.rmtree(draft, ignore_errors=True)
            finally:
                os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Locks a file until its descriptor is closed; returns False if it is locked or locks are unsupported."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
