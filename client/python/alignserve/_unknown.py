"""Warnings of the command about texts with words that the model's vocabulary lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from alignserve._client import Client
from alignserve._items import StreamResult, TextItem
from alignserve._results import Tokenization
from alignserve.errors import AlignserveError

_MOST_WARNINGS = 5
_MOST_LABELS_ASKED = 64  # one request, by default
_ASK_SECONDS = 5.0


def warn_of_unknown_texts(results: Iterable[StreamResult], warn: Callable[[str], None]) -> None:
    """Warns of each text with unknown tokens, once."""
    found = {
        result.item.text: result.tokenization
        for result in results
        if isinstance(result.item, TextItem) and result.tokenization is not None
    }
    _warn(found, "its embedding says little", warn)


def warn_of_unknown_labels(client: Client, labels: Sequence[str], warn: Callable[[str], None]) -> None:
    """Warns of each label with unknown tokens, once.

    A response to `Classify` does not tell of tokens, so `EmbedText` is asked about the labels that may have
    unknown ones: those with other characters than ASCII, which each vocabulary of ALIGN has.
    """
    foreign = [label for label in dict.fromkeys(labels) if not label.isascii()][:_MOST_LABELS_ASKED]
    if not foreign:
        return
    try:
        answer = client.embed_text_detailed(foreign, truncate=True, timeout_seconds=_ASK_SECONDS)
    except AlignserveError:  # such as of a key for Classify alone; the command has what it was run for
        return
    _warn(dict(zip(foreign, answer.tokenizations, strict=True)), "its scores say little", warn)


def _warn(found: dict[str, Tokenization], consequence: str, warn: Callable[[str], None]) -> None:
    unknown = {text: one for text, one in found.items() if one.unknown_token_count}
    for text, one in list(unknown.items())[:_MOST_WARNINGS]:
        warn(
            f"{one.unknown_token_count} of {one.token_count} tokens of '{_short(text)}' are unknown to the "
            f"model's vocabulary; {consequence}"
        )
    if len(unknown) > _MOST_WARNINGS:
        warn(f"{len(unknown) - _MOST_WARNINGS} more texts have unknown tokens")


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"
