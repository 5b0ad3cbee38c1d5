"""Everyday words over ImageNet's classes that WordNet lacks: `cow` over ox, `cycling` over mountain bike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.recipes.mini.imagenet import ImageClass
from server.recipes.mini.wordnet import WordNet

LIST = Path(__file__).parent / "everyday.txt"


@dataclass(frozen=True)
class Everyday:
    """Names of one thing, by index the classes that show it, and those of which it is not known."""

    names: tuple[str, ...]
    shows: tuple[int, ...]
    may: tuple[int, ...]


def read(
    wordnet: WordNet, classes: Sequence[ImageClass], below: Mapping[int, Sequence[int]], path: Path = LIST
) -> list[Everyday]:
    """Reads lines of `names | classes that show it | classes that may`.

    `<noun>` is every class below it, and `-` takes a class out.

    Raises `ValueError` for a class or a noun that does not exist.
    """
    index = _by_name(classes)
    lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    return [_parsed(line, wordnet, index, below) for line in lines if line and not line.startswith("#")]


def _by_name(classes: Sequence[ImageClass]) -> dict[str, list[int]]:
    """The classes of each name. A class's best names count before the synonyms of others."""
    index: dict[str, list[int]] = {}
    for count in (1, 2, None):
        known = set(index)
        for at, each in enumerate(classes):
            for name in dict.fromkeys(name.lower() for name in each.names[:count]):
                if name not in known:
                    index.setdefault(name, []).append(at)
    return index


def _parsed(
    line: str, wordnet: WordNet, index: Mapping[str, Sequence[int]], below: Mapping[int, Sequence[int]]
) -> Everyday:
    names, shows, may = ([part.strip() for part in field.split(",")] for field in line.split("|"))
    found: list[set[int]] = [set(), set()]
    for into, field in zip(found, (shows, may), strict=True):
        for each in sorted(filter(None, field), key=lambda name: name.startswith("-")):
            classes = _classes_of(each.removeprefix("-"), wordnet, index, below)
            if each.startswith("-"):
                into -= set(classes)
            else:
                into |= set(classes)
    return Everyday(tuple(names), tuple(sorted(found[0])), tuple(sorted(found[1] - found[0])))


def _classes_of(
    name: str, wordnet: WordNet, index: Mapping[str, Sequence[int]], below: Mapping[int, Sequence[int]]
) -> Sequence[int]:
    if not name.startswith("<"):
        if (found := index.get(name.lower())) is None:
            raise ValueError(f"{name!r} is not a class of ImageNet")
        return found
    noun = name.strip("<>")
    for offset in wordnet.senses.get(noun, ()):
        if offset in below:
            return below[offset]
    raise ValueError(f"no class of ImageNet is a kind of {noun!r}")
