"""Which phrases are right and which are wrong for each photograph.

A photograph has captions, and lists of nouns, people, actions, coloured things and places. From these follow
more phrases: `a man running`, `an empty beach`, `yellow`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.recipes.mini.meaning import Implications, agreement, content_words
from server.recipes.mini.phrases import with_article

COLOURS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey",
)  # fmt: skip
_WITHHELD = 5  # of the collections, one in five
_PEOPLE = frozenset({"person", "crowd", "group", "family", "couple"})
# Texts for one person, for two, for some and for many. The first of each holds for no other number.
_COUNTS = (
    ("one person", "a single person"),
    ("two people", "a pair of people"),
    ("several people", "a small group of people", "group of people", "a group of people"),
    ("a crowd", "crowd", "a crowd of people", "many people", "group of people", "a group of people"),
)


@dataclass(frozen=True)
class Phrase:
    """A text about a photograph. `kind` is caption, thing, people, count, action, colour, hue or place."""

    text: str
    kind: str


@dataclass(frozen=True)
class Known:
    """All phrases of some photographs. `right` is 1 right, 0 wrong, -1 unknown, (photos, phrases)."""

    phrases: list[Phrase]
    right: Tensor
    words: list[frozenset[str]]  # of each photo, widened


@dataclass(frozen=True)
class Photo:
    """A photograph of the recipe: its file below the folder of photographs, and what people saw in it."""

    file: str
    captions: tuple[str, ...]
    nouns: tuple[str, ...] = ()
    people: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()  # things with their colour: `orange sofa`
    place: tuple[str, ...] = ()
    collection: str = ""  # what it is one of, such as COCO: its source, or several sources together

    @property
    def is_withheld(self) -> bool:
        """Whether the rehearsal leaves it out, together with the rest of its collection.

        Pictures of a collection are alike: a model that has seen some is too sure of the others. The choice
        does not depend on other photographs.
        """
        return int(hashlib.sha256(self.collection.encode()).hexdigest(), 16) % _WITHHELD == 0


def phrases_of(photo: Photo) -> list[Phrase]:
    """All phrases that are right for a photograph, each once."""
    lists = {
        "caption": photo.captions,
        "thing": photo.nouns,
        "people": tuple(tag for tag in photo.people if not any(tag in texts for texts in _COUNTS)),
        "action": photo.actions,
        "colour": photo.colours,
        "place": photo.place,
    }
    found = [Phrase(text, kind) for kind, texts in lists.items() for text in texts]
    places = [place for place in photo.place if place not in {"indoors", "outdoors"}]
    for each in list(found):
        if each.kind == "action":
            found += [
                Phrase(f"{with_article(who)} {each.text}", "action") for who in (*photo.people, "person")
            ]
        if each.kind == "colour":
            found += [Phrase(word, "hue") for word in each.text.split() if word in COLOURS]
    found += [Phrase(text, "count") for text in counted(photo.people)]
    for place in places:
        found += [Phrase(f"{with_article(who)} in the {place}", "place") for who in photo.people]
        if not photo.people and "person" not in photo.nouns:
            found.append(Phrase(f"an empty {place}", "place"))
    return list(dict.fromkeys(found))


def counted(people: Sequence[str]) -> tuple[str, ...]:
    """What tags say about how many people there are, such as `one person`; empty if they do not say."""
    number = _how_many({tag.split()[0] for tag in people}, {tag.split()[-1] for tag in people})
    return () if number is None else _COUNTS[number]


def _how_many(first: set[str], last: set[str]) -> int | None:
    """The place in `_COUNTS`, from the first and the last words of tags."""
    if "crowd" in last:
        return 3
    if "two" in first or "couple" in last:
        return 1
    if first & {"group", "family", "three", "four", "five"}:
        return 2
    if last & {"men", "women", "children", "boys", "girls"}:
        return None
    who = len(last & {"man", "woman"}) + bool(last & {"child", "boy", "girl", "baby"})
    return who - 1 if who in {1, 2} else None


@dataclass(frozen=True)
class _Facts:
    """Facts about photographs that their words do not give, each (photos,)."""

    has_people: NDArray[np.bool_]
    is_old: NDArray[np.bool_]
    has_colours: NDArray[np.bool_]
    has_places: NDArray[np.bool_]
    number: NDArray[np.int64]  # place in `_COUNTS`, or -1
    coloured: dict[str, list[int]]  # a thing, and the photographs of which its colour is known

    @classmethod
    def of(cls, photos: Sequence[Sequence[Phrase]], seen: Sequence[frozenset[str]]) -> _Facts:
        """Reads phrases, and the words that they say and imply."""
        kinds = [{phrase.kind for phrase in photo} for photo in photos]
        numbers = {Phrase(texts[0], "count"): at for at, texts in enumerate(_COUNTS)}
        coloured: dict[str, list[int]] = {}
        for row, photo in enumerate(photos):
            for phrase in photo:
                if phrase.kind == "colour":
                    coloured.setdefault(_thing(phrase), []).append(row)
        return cls(
            np.array([not words.isdisjoint(_PEOPLE) for words in seen]),
            np.array(["old" in words for words in seen]),
            np.array(["colour" in each for each in kinds]),
            np.array(["place" in each for each in kinds]),
            np.array([next((numbers[each] for each in photo if each in numbers), -1) for photo in photos]),
            coloured,
        )

    def contradict(self, phrase: Phrase) -> NDArray[np.bool_]:
        """Which photographs show otherwise: another colour of a thing, an empty place with people."""
        found = np.zeros(len(self.number), np.bool_)
        if phrase.kind == "colour":
            found[self.coloured.get(_thing(phrase), [])] = True
        elif phrase.kind == "count":
            others = [at for at, texts in enumerate(_COUNTS) if phrase.text not in texts]
            found = np.isin(self.number, others)
        elif phrase.kind == "people" and "old" in phrase.text.split():
            found = self.has_people & ~self.is_old
        elif phrase.text.startswith("an empty "):
            found = self.has_people
        return found

    def judge(self, phrase: Phrase) -> NDArray[np.bool_]:
        """For which photographs a phrase is wrong if it shares no word.

        Those whose tags have its kind; for numbers of people, those without people.
        """
        if phrase.kind == "hue":
            return self.has_colours
        if phrase.kind == "place":
            return self.has_places
        if phrase.kind == "count":
            return ~self.has_people
        return np.ones(len(self.number), np.bool_)


def _thing(coloured: Phrase) -> str:
    return coloured.text.partition(" ")[2]


def known(photos: Sequence[Sequence[Phrase]], implications: Implications) -> Known:
    """Compares phrases with photographs. Phrases with their colour exchanged are added as wrong ones."""
    every = [phrase for photo in photos for phrase in photo]
    exchanged = [other for phrase in every if phrase.kind == "colour" for other in recoloured(phrase)]
    phrases = list(dict.fromkeys([*every, *exchanged]))
    words = [content_words(phrase.text) for phrase in phrases]
    seen = [
        implications.widened(frozenset().union(*(content_words(each.text) for each in photo)))
        for photo in photos
    ]
    shares = agreement(words, seen)
    facts = _Facts.of(photos, seen)
    right = np.full(shares.shape, -1, np.int8)
    for column, (phrase, own) in enumerate(zip(phrases, words, strict=True)):
        share, verdict = shares[:, column], right[:, column]
        if own:
            verdict[(share == 0) & facts.judge(phrase)] = 0
        if not says_more_than_its_words(phrase, own):  # else the words occur, but perhaps not together
            verdict[share == 1] = 1
        verdict[facts.contradict(phrase)] = 0
    place = {phrase: at for at, phrase in enumerate(phrases)}
    for row, photo in enumerate(photos):
        right[row, [place[phrase] for phrase in photo]] = 1
    return Known(phrases, torch.from_numpy(right), seen)


def recoloured(phrase: Phrase) -> list[Phrase]:
    """`blue sofa` and others for `orange sofa`."""
    first, _, rest = phrase.text.partition(" ")
    if first not in COLOURS or not rest:
        return []
    return [Phrase(f"{colour} {rest}", "colour") for colour in COLOURS if colour != first]


def says_more_than_its_words(phrase: Phrase, words: frozenset[str]) -> bool:
    """Whether it can be wrong for a photograph for which each of its words is right."""
    return phrase.kind == "count" or (phrase.kind in {"caption", "colour", "action"} and len(words) > 1)
