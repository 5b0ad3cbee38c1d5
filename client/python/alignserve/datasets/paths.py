"""Paths of files as texts that UTF-8 can hold, and back."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit


def path_text(path: Path) -> str:
    """Returns the absolute path, or a `file:` URL if the path is not UTF-8."""
    absolute = path.absolute()
    try:
        str(absolute).encode()
    except UnicodeEncodeError:
        return absolute.as_uri()
    return str(absolute)


def path_of(text: str) -> Path:
    """Returns the path that a text names; a `file:` URL has the bytes of a name that is not UTF-8."""
    if not text.startswith("file:"):
        return Path(text)
    return Path(unquote_to_bytes(urlsplit(text).path).decode("utf-8", "surrogateescape"))
