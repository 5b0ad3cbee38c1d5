"""Warnings about texts with words that the model's vocabulary lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from alignserve._items import CompareItem, StreamResult, TextItem
from alignserve._results import Tokenization

_MAX_WARNINGS = 5


def warn_of_unknown_texts(results: Iterable[StreamResult], warn: Callable[[str], None]) -> None:
    """Warns about each text with unknown tokens, of an embedding or a comparison, once."""
    found = {
        result.item.text: result.tokenization
        for result in results
        if isinstance(result.item, (TextItem, CompareItem)) and result.tokenization is not None
    }
    warn_of_unknown(found, "its embedding means little", warn)


def warn_of_unknown(found: dict[str, Tokenization], consequence: str, warn: Callable[[str], None]) -> None:
    """Warns about the first few texts with unknown tokens, and gives the number of the others."""
    unknown = {text: one for text, one in found.items() if one.unknown_token_count}
    for text, one in list(unknown.items())[:_MAX_WARNINGS]:
        warn(
            f"{one.unknown_token_count} of {one.token_count} tokens of '{short(text)}' are unknown to the "
            f"model's vocabulary; {consequence}"
        )
    if len(unknown) > _MAX_WARNINGS:
        warn(f"{len(unknown) - _MAX_WARNINGS} more texts have unknown tokens")


def short(text: str) -> str:
    """Returns a text, shortened to fit into a line."""
    return text if len(text) <= 40 else f"{text[:39]}…"
