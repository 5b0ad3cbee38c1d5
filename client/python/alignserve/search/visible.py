"""Writes out invisible characters, which could act: move a cursor, or turn the direction of a line."""

from __future__ import annotations

import unicodedata

_NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
# Persian and Indian scripts and many emoji need the joiners, which change no other text.
_KEPT = frozenset("\u200c\u200d")
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def visible(text: str) -> str:
    r"""Returns a text with its invisible characters written out: `a\nb`, `\x1b[31m`, `\u202e`.

    The surrogates that Python uses for the bytes of file names that are not UTF-8 are shown as these bytes.
    """
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in _HIDDEN:
        return character
    code = ord(character)
    if character in _NAMED:
        return _NAMED[character]
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
