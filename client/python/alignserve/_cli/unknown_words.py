"""Warnings of the command about texts with words that the model's vocabulary lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from alignserve._items import StreamResult, TextItem
from alignserve._results import Tokenization

_MOST_WARNINGS = 5


def warn_of_unknown_texts(results: Iterable[StreamResult], warn: Callable[[str], None]) -> None:
    """Warns of each text with unknown tokens, once."""
    found = {
        result.item.text: result.tokenization
        for result in results
        if isinstance(result.item, TextItem) and result.tokenization is not None
    }
    warn_of_unknown(found, "its embedding says little", warn)


def warn_of_unknown(found: dict[str, Tokenization], consequence: str, warn: Callable[[str], None]) -> None:
    """Warns of those among some texts that have unknown tokens, and of the rest by their number."""
    unknown = {text: one for text, one in found.items() if one.unknown_token_count}
    for text, one in list(unknown.items())[:_MOST_WARNINGS]:
        warn(
            f"{one.unknown_token_count} of {one.token_count} tokens of '{short(text)}' are unknown to the "
            f"model's vocabulary; {consequence}"
        )
    if len(unknown) > _MOST_WARNINGS:
        warn(f"{len(unknown) - _MOST_WARNINGS} more texts have unknown tokens")


def short(text: str) -> str:
    """Returns a text as a line has room for."""
    return text if len(text) <= 40 else f"{text[:39]}…"
