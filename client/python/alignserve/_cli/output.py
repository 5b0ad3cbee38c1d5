"""Output of a command: streams that accept any text, and files that are not truncated when opened."""

from __future__ import annotations

import codecs
import io
import json
import os
import stat
import sys
from pathlib import Path
from typing import IO, TextIO


def prepare_standard_streams() -> None:
    """Lets stdout and stderr accept any text, even if they are closed or not Unicode."""
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names need not be Unicode: Python keeps their bytes as surrogates, and writes them back.
        sys.stdout.reconfigure(errors="surrogateescape" if is_unicode(sys.stdout) else "replace")


def is_unicode(out: TextIO) -> bool:
    """Returns whether the stream can write any text."""
    return codecs.lookup(out.encoding).name == "utf-8"


def complain(message: str) -> None:
    """Writes a line for people to stderr."""
    sys.stderr.write(f"alignserve: {' '.join(message.split())}\n")


def json_text(data: object, out: TextIO) -> str:
    """Returns JSON in one line that the stream can write."""
    text = json.dumps(data, ensure_ascii=not is_unicode(out))
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half a character, as JSON can have it
        return json.dumps(data)
    return text


def open_bytes(path: Path) -> IO[bytes]:
    """Opens or creates a file for bytes; its content stays until `empty`."""
    return open(path, "wb", opener=_without_truncating)


def open_text(path: Path) -> TextIO:
    """Opens or creates a file for text, in which file names keep their bytes; see `open_bytes`."""
    return open(path, "w", encoding="utf-8", errors="surrogateescape", opener=_without_truncating)


def open_end(path: Path) -> TextIO:
    """Opens a file to append text; see `open_text`."""
    return path.open("a", encoding="utf-8", errors="surrogateescape")


def empty(file: IO[bytes] | TextIO) -> None:
    """Truncates a file; pipes and devices have nothing to truncate."""
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.truncate(0)


def _without_truncating(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_TRUNC, 0o666)


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")
