"""A vocabulary of word pieces for everyday nouns, cut from MiniLM's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def chosen(pieces: Sequence[str], counts: Mapping[str, float], common: int, size: int) -> list[str]:
    """The pieces to keep, in order: special ones, characters, its `common` first words, the most used.

    MiniLM's list is ordered by frequency. Every character that it knows in ASCII stays, so that no English
    word becomes unknown.
    """
    known = set(pieces)
    kept = {piece for piece in SPECIAL if piece in known}
    kept |= {piece for piece in pieces if piece.isascii() and len(piece.removeprefix("##")) == 1}
    words = [piece for piece in pieces if piece.isascii() and piece.isalpha() and len(piece) > 1]
    kept |= set(words[:common])
    ranked = sorted((piece for piece in counts if piece in known), key=lambda piece: (-counts[piece], piece))
    for piece in ranked:
        if len(kept) >= size:
            break
        kept.add(piece)
    return [piece for piece in pieces if piece in kept]


def counted(texts: Iterable[tuple[Sequence[str], float]]) -> Counter[str]:
    """Sums the weights of the texts in which each piece occurs."""
    counts: Counter[str] = Counter()
    for pieces, weight in texts:
        for piece in pieces:
            counts[piece] += weight  # type: ignore[assignment]  # a Counter adds floats as well
    return counts
