"""Generates captions of short, mixed or long length, all different."""

from __future__ import annotations

import random
from typing import Literal, TypeAlias

TextLength: TypeAlias = Literal["short", "mixed", "long"]

# Words in a text. ALIGN reads 64 tokens; each word here is one token, and the tag of a unique text is seven.
_WORDS = {"short": (3, 8), "mixed": (3, 46), "long": (40, 46)}
_KINDS = tuple(
    words.split()
    for words in (
        "a the one another every this that some",
        "small large old new red blue green white black bright dark quiet busy happy wooden wet",
        "dog cat horse bird car boat train house bridge tree river mountain child woman man cup",
        "below under near behind above across with without around against",
    )
)


def sentences(count: int, length: TextLength, seed: int) -> list[str]:
    """Returns `count` different texts; the same seed gives the same texts."""
    rng = random.Random(seed)  # noqa: S311 — not a secret
    found: dict[str, None] = {}
    while len(found) < count:
        found[_sentence(rng, rng.randint(*_WORDS[length]))] = None
    return list(found)


def _sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(_KINDS[position % len(_KINDS)]) for position in range(words))
