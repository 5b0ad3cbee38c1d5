"""What a phrase says about a photograph: its content words, and the more general words that they imply."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from server.recipes.mini.wordnet import WordNet

_WORD = re.compile(r"[a-z]+")
_EMPTY = frozenset({
    "a", "an", "the", "of", "in", "on", "at", "with", "and", "or", "to", "from", "by", "for", "is", "are",
    "be", "being", "his", "her", "their", "its", "this", "that", "these", "those", "there", "some", "one",
    "photo", "picture", "image", "close", "up", "view", "front", "top", "next", "near", "over", "under",
    "into", "out", "off", "it", "as", "while",
})  # fmt: skip
_IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "mice": "mouse",
    "geese": "goose", "feet": "foot", "teeth": "tooth", "knives": "knife", "leaves": "leaf",
    "wolves": "wolf", "sheep": "sheep",
    "gray": "grey", "skies": "sky", "bus": "bus", "grass": "grass", "glass": "glass", "dress": "dress",
    "kids": "child", "kid": "child", "photograph": "photo",
}  # fmt: skip
# Kinds that WordNet's first senses miss or word differently.
_ALSO = {
    "man": ("person", "adult"), "woman": ("person", "adult"), "boy": ("person", "child"),
    "girl": ("person", "child"), "child": ("person",), "baby": ("person", "child"), "car": ("vehicle",),
    "bus": ("vehicle",), "house": ("building",), "tower": ("building",), "church": ("building",),
    "pizza": ("food",), "cake": ("food",), "fruit": ("food", "plant"),
    "flower": ("plant",), "tree": ("plant",), "beach": ("landscape", "outdoor"),
    "mountain": ("landscape", "outdoor"),
}  # fmt: skip
# Describing words whose commonest meaning as nouns is a person, a fruit or an animal.
_DESCRIBING = frozenset({
    "white", "grey", "orange", "black", "red", "blue", "green", "yellow", "purple", "pink", "brown", "young",
    "old", "great", "modern", "dry", "ancient", "heavy", "male", "female", "giant", "wild", "domestic",
    "native", "dark",
})  # fmt: skip
_TOO_GENERAL = 4  # fewest steps below WordNet's root


def content_words(phrase: str) -> frozenset[str]:
    """The words of a phrase that say what is in the photo, in the singular."""
    return frozenset(singular(word) for word in _WORD.findall(phrase.lower()) if word not in _EMPTY)


def singular(word: str) -> str:
    """The singular of a regular plural, or the word itself."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if len(word) > 4 and word.endswith(("shes", "ches", "sses", "xes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def said_alone(phrase: str) -> frozenset[str]:
    """The content word of a phrase that has only one. A word of a longer name says less than the name."""
    words = content_words(phrase)
    return words if len(words) == 1 else frozenset()


class Implications:
    """Widens words by the kinds of things that they are: `dog` implies `animal`."""

    def __init__(self, wordnet: WordNet) -> None:
        self._wordnet = wordnet
        self._known: dict[str, frozenset[str]] = {}

    def widened(self, words: Iterable[str]) -> frozenset[str]:
        """The words with all that they imply."""
        return frozenset().union(*(self._implied(word) for word in words))

    def _implied(self, word: str) -> frozenset[str]:
        if word not in self._known:
            implied = {word, *_ALSO.get(word, ())}
            offset = None if word in _DESCRIBING else self._wordnet.first_sense(word)
            if offset is not None and not self._wordnet.synsets[offset].is_name:
                above = self._wordnet.above(offset)
                depth = max(above.values())
                for higher, steps in above.items():
                    if depth - steps >= _TOO_GENERAL:
                        names = self._wordnet.synsets[higher].names
                        implied |= {name.lower() for name in names if " " not in name}
            self._known[word] = frozenset(implied)
        return self._known[word]


def agreement(phrases: Sequence[frozenset[str]], photos: Sequence[frozenset[str]]) -> NDArray[np.float32]:
    """(photos, phrases): the share of a phrase's words that hold for a photo; 0 for an empty phrase."""
    place = {word: at for at, word in enumerate(sorted(frozenset().union(*phrases)))}
    said, held = _bags(phrases, place), _bags(photos, place)
    return (held @ said.T) / np.maximum(said.sum(axis=1), 1)


def _bags(texts: Sequence[frozenset[str]], place: Mapping[str, int]) -> NDArray[np.float32]:
    """(texts, words): 1 for each word of a text that has a place."""
    bags = np.zeros((len(texts), len(place)), np.float32)
    for row, words in enumerate(texts):
        bags[row, [place[word] for word in words if word in place]] = 1
    return bags
