"""Warnings about labels whose scores are unreliable."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from alignserve._cli.unknown_words import short, warn_of_unknown
from alignserve._client import Client
from alignserve._results import Classification, TextEmbeddings
from alignserve.errors import AlignserveError

_MAX_LABELS_ASKED = 64  # one request, by default
_MAX_WARNINGS = 5
_MAX_IMAGES_NAMED = 3
_ASK_SECONDS = 5.0
_SAME = 1e-5  # difference between vectors of length 1 that were computed in different batches
_NEAR_ZERO = 0.05  # a similarity that unrelated images and texts have too

Warn = Callable[[str], None]


def warn_of_labels(client: Client, labels: Sequence[str], warn: Warn) -> None:
    """Warns about labels with unknown tokens, and about labels that are the same to the model.

    The response to `Classify` has no token counts, so this embeds the labels that may be affected: those with
    non-ASCII characters, since every ALIGN vocabulary covers ASCII, and those that differ only in case,
    accents, blanks and punctuation.
    """
    distinct = list(dict.fromkeys(labels))
    doubtful = {label for label in distinct if not label.isascii()} | _alike(distinct)
    asked = [label for label in distinct if label in doubtful][:_MAX_LABELS_ASKED]
    answer = _asked(client, asked)
    if answer is not None:
        known = dict(zip(asked, answer.tokenizations, strict=True))
        warn_of_unknown(known, "its scores mean little", warn)
    groups = _same(asked, answer) if answer is not None else []
    repeated = [[label, label] for label in distinct if labels.count(label) > 1]
    for group in (repeated + groups)[:_MAX_WARNINGS]:
        named = " and ".join(f"'{short(label)}'" for label in group)
        warn(f"labels {named} are the same to the model and share their score; leave out all but one")


def fits_badly(found: Sequence[Classification]) -> bool:
    """Returns whether the best label of an image is no more similar to it than an unrelated text."""
    return bool(found) and max(one.similarity for one in found) < _NEAR_ZERO


def warn_of_winners(unfitting: Sequence[str], label_count: int, warn: Warn) -> None:
    """Warns about meaningless scores, since softmax always has a winner.

    Args:
        unfitting: Names of the images that no label fits.
        label_count: Number of labels.
        warn: Shows a warning to the user.
    """
    if label_count == 1:
        warn("the score of a single label is always 1; use its similarity, or give more labels")
    if unfitting:
        warn(
            f"no label fits {_listed(unfitting)}: the best similarity is below {_NEAR_ZERO}, near zero; "
            "scores add up to 1, so some label always wins"
        )


def _listed(images: Sequence[str]) -> str:
    named = ", ".join(images[:_MAX_IMAGES_NAMED])
    more = len(images) - _MAX_IMAGES_NAMED
    return f"{len(images)} images ({named} and {more} more)" if more > 0 else named


def _asked(client: Client, labels: Sequence[str]) -> TextEmbeddings | None:
    if not labels:
        return None
    try:
        return client.embed_text_detailed(labels, truncate=True, timeout_seconds=_ASK_SECONDS)
    except AlignserveError:  # such as a key that permits only Classify; the command itself has succeeded
        return None


def _alike(labels: Iterable[str]) -> set[str]:
    """Returns the labels that ALIGN tokenizers are likely to read the same as another label."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for label in labels:
        groups.setdefault(_folded(label), []).append(label)
    return {label for group in groups.values() if len(group) > 1 for label in group}


def _folded(label: str) -> tuple[str, ...]:
    """Returns the words and punctuation of a label, as an uncased BERT tokenizer splits it."""
    lowered = unicodedata.normalize("NFD", label.lower())
    return tuple(re.findall(r"\w+|[^\w\s]", "".join(filter(_is_read, lowered))))


def _is_read(character: str) -> bool:
    is_dropped = unicodedata.category(character) in ("Mn", "Cc", "Cf")  # accents, controls, joiners
    return character.isspace() or not is_dropped


def _same(labels: Sequence[str], answer: TextEmbeddings) -> list[list[str]]:
    groups: list[list[int]] = []
    rows = np.asarray(answer.embeddings, np.float64)
    for position, row in enumerate(rows):
        group = next((group for group in groups if np.abs(rows[group[0]] - row).max() < _SAME), None)
        if group is None:
            groups.append([position])
        else:
            group.append(position)
    return [[labels[position] for position in group] for group in groups if len(group) > 1]
