"""Keys of rows: unique, whole, and valid Unicode whatever the names of files are."""

from __future__ import annotations

import re

_BAD_BYTE = re.compile("[\udc80-\udcff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LOOKS_ESCAPED = r"\x"


def key_of_name(name: str) -> str:
    r"""Returns the key for a file's name, which differs for each name.

    A name that is valid UTF-8 is its own key, with its newlines and its own form of accents (NFC or NFD). In
    another name, each byte that is not UTF-8 becomes `\xNN` and each backslash two of them.
    """
    if not _BAD_BYTE.search(name) and _LOOKS_ESCAPED not in name:
        return name
    escaped = name.replace("\\", "\\\\")
    return _BAD_BYTE.sub(lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", escaped)


def is_unicode(text: str) -> bool:
    """Returns whether a text has no lone surrogates, which UTF-8 cannot express."""
    return not _SURROGATE.search(text)
