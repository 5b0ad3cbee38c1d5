"""Made-up captions of short, mixed or long length, no two alike."""

from __future__ import annotations

import random
from typing import Literal, TypeAlias

TextLength: TypeAlias = Literal["short", "mixed", "long"]

# Words in a text. ALIGN reads 64 tokens; a word here is one, and the tag of a unique text seven.
_WORDS = {"short": (3, 8), "mixed": (3, 46), "long": (40, 46)}
_KINDS = tuple(
    words.split()
    for words in (
        "a the one another every this that some",
        "small large old new red blue green white black bright dark quiet busy happy wooden wet",
        "dog cat horse bird car boat train house bridge tree river mountain child woman man cup",
        "beside under near behind above across with without around against",
    )
)


def sentences(count: int, length: TextLength, seed: int) -> list[str]:
    """Returns `count` texts that differ from each other; the same seed gives the same ones."""
    chance = random.Random(seed)  # noqa: S311 — no secret
    found: dict[str, None] = {}
    while len(found) < count:
        found[_sentence(chance, chance.randint(*_WORDS[length]))] = None
    return list(found)


def _sentence(chance: random.Random, words: int) -> str:
    return " ".join(chance.choice(_KINDS[position % len(_KINDS)]) for position in range(words))
