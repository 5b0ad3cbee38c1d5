"""The errors of LanceDB, of a damaged folder or a full disk or from an object store, as `StoreError`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from alignserve.search.errors import StoreError

_SENT = re.compile(r"<Message>(.*?)</Message>", re.DOTALL)  # by S3 and Azure
_SEEN = re.compile(r"Os \{ code: \d+, kind: \w+, message: \"([^\"]*)\"")
_SOURCE_LINE = re.compile(r",\s+(location: Location \{|/\S+\.rs:\d+).*", re.DOTALL)  # of the engine
_LABEL = re.compile(r"^(lance error|External error|Invalid input|LanceError\(\w+\))[:,] ")
_MOST = 300  # characters


@contextmanager
def engine_errors(place: str) -> Iterator[None]:
    """Raises `StoreError`, with the reason in one line, for an error of the engine."""
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        raise StoreError(
            f"the store {place} cannot be read or written: {reason(error)}; "
            "if its files are damaged, restore them, or index again"
        ) from error


def reason(error: Exception) -> str:
    """Returns what people need of the text of an error of the engine, which can be a page of Rust."""
    text = str(error)
    if told := _SENT.search(text) or _SEEN.search(text):
        return told[1]
    text = _SOURCE_LINE.sub("", text)
    while (bare := _LABEL.sub("", text)) != text:
        text = bare
    line = " ".join(text.split())
    return line if len(line) <= _MOST else f"{line[:_MOST]}…"
