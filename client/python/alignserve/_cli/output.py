"""Where a command writes: streams that take any text, and files that keep what they hold until it is time."""

from __future__ import annotations

import codecs
import io
import os
import stat
import sys
from pathlib import Path
from typing import IO, TextIO


def prepare_standard_streams() -> None:
    """Lets stdout and stderr take whatever is printed, also if they are closed or not Unicode."""
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files need not be Unicode; Python keeps their bytes as surrogates, and so they leave again.
        sys.stdout.reconfigure(errors="surrogateescape" if is_unicode(sys.stdout) else "replace")


def is_unicode(out: TextIO) -> bool:
    """Says whether any text can be written as it is."""
    return codecs.lookup(out.encoding).name == "utf-8"


def open_bytes(path: Path) -> IO[bytes]:
    """Opens or creates a file for bytes; what it holds stays until `empty`."""
    return open(path, "wb", opener=_without_truncating)


def open_text(path: Path) -> TextIO:
    """Opens or creates a file for text, in which names of files keep their bytes; see `open_bytes`."""
    return open(path, "w", encoding="utf-8", errors="surrogateescape", opener=_without_truncating)


def open_end(path: Path) -> TextIO:
    """Opens a file for text that goes after what it holds; see `open_text`."""
    return path.open("a", encoding="utf-8", errors="surrogateescape")


def empty(file: IO[bytes] | TextIO) -> None:
    """Drops what a file held when it was opened; pipes and devices hold nothing."""
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.truncate(0)


def _without_truncating(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_TRUNC, 0o666)


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")
