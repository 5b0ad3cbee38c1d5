"""Nouns of WordNet 3.0: synsets, their kinds, and which sense of a word comes first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Synset:
    """One meaning. `offset` names it, also in ImageNet: class n02084071 is the synset at 2084071."""

    offset: int
    names: tuple[str, ...]
    kinds: tuple[int, ...]  # offsets of the synsets that this one is a kind of
    gloss: str
    is_name: bool = False  # of one thing, as `Eiffel Tower` is


@dataclass(frozen=True)
class WordNet:
    """All noun synsets by offset, and the offsets of each word in order of frequency."""

    synsets: dict[int, Synset]
    senses: dict[str, tuple[int, ...]]
    _above: dict[int, dict[int, int]] = field(default_factory=dict, compare=False)

    def above(self, offset: int) -> dict[int, int]:
        """Every synset that this one is a kind of, itself included, with the fewest steps to it."""
        if offset not in self._above:
            steps = {offset: 0}
            for kind in self.synsets[offset].kinds:
                for higher, count in self.above(kind).items():
                    steps[higher] = min(count + 1, steps.get(higher, count + 1))
            self._above[offset] = steps
        return self._above[offset]

    def first_sense(self, word: str) -> int | None:
        """The offset of a word's most frequent meaning, or None for an unknown word."""
        offsets = self.senses.get(word.lower())
        return offsets[0] if offsets else None


def read(folder: Path) -> WordNet:
    """Reads `data.noun` and `index.noun` of a folder, such as Debian's `usr/share/wordnet`."""
    data = (folder / "data.noun").read_text("utf-8").splitlines()
    index = (folder / "index.noun").read_text("utf-8").splitlines()
    synsets = [parse_synset(line) for line in data if not line.startswith("  ")]
    senses = dict(parse_senses(line) for line in index if not line.startswith("  "))
    return WordNet({synset.offset: synset for synset in synsets}, senses)


def parse_synset(line: str) -> Synset:
    """Parses a line of `data.noun`, whose format is in the manual page wndb(5)."""
    fields, _, gloss = line.partition("|")
    parts = fields.split()
    count = int(parts[3], 16)
    names = tuple(part.replace("_", " ") for part in parts[4 : 4 + 2 * count : 2])
    pointers = parts[4 + 2 * count + 1 :]
    kinds = tuple(
        int(pointers[at + 1])
        for at in range(0, len(pointers) - 3, 4)
        if pointers[at] in {"@", "@i"} and pointers[at + 2] == "n"
    )
    is_name = "@i" in pointers[::4]
    return Synset(int(parts[0]), names, kinds, gloss.strip(), is_name)


def parse_senses(line: str) -> tuple[str, tuple[int, ...]]:
    """Parses a line of `index.noun` into a word and the offsets of its meanings."""
    parts = line.split()
    count = int(parts[2])
    return parts[0].replace("_", " "), tuple(int(part) for part in parts[-count:])


def definition(synset: Synset) -> str:
    """The gloss without its examples."""
    return synset.gloss.split('; "')[0].strip()


def word_counts(synsets: Iterable[Synset]) -> Counter[str]:
    """How often each word occurs in the glosses: a measure of how common it is."""
    return Counter(word for synset in synsets for word in _WORD.findall(synset.gloss.lower()))
