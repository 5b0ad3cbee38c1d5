"""Which phrases agree with a photograph."""

from __future__ import annotations

import pytest

from server.recipes.mini import wordnet
from server.recipes.mini.meaning import Implications, agreement, content_words


@pytest.mark.parametrize(
    ("phrase", "words"),
    [
        ("a photo of two dogs", {"two", "dog"}),
        ("People running on the beach", {"person", "running", "beach"}),
        ("a bus", {"bus"}),
        ("a grass field", {"grass", "field"}),
        ("cherries and dishes", {"cherry", "dish"}),
        ("a photo of the", set()),
    ],
)
def test_content_words_are_singular_and_say_something(phrase: str, words: set[str]) -> None:
    """Articles, prepositions and `photo` say nothing."""
    assert content_words(phrase) == words


def test_agreement_is_the_share_of_words_that_hold() -> None:
    """All, half, and none."""
    phrases = [content_words(each) for each in ("a brown dog", "a brown cat", "a sofa")]

    assert agreement(phrases, [frozenset({"brown", "dog", "grass"})]).tolist() == [[1.0, 0.5, 0.0]]


def test_a_word_implies_its_kinds_but_not_the_most_general_ones() -> None:
    """Everything is an entity, so that says nothing."""
    chain = ("entity", "object", "whole", "thing", "animal", "dog")
    synsets = {at: wordnet.Synset(at, (name,), (at - 1,) if at else (), "") for at, name in enumerate(chain)}
    net = wordnet.WordNet(synsets, {name: (at,) for at, name in enumerate(chain)})

    assert Implications(net).widened({"dog"}) == {"dog", "animal"}


def test_a_man_is_a_person_and_not_a_child() -> None:
    """Kinds of people come first from a list: WordNet's first senses miss some."""
    widened = Implications(wordnet.WordNet({}, {})).widened({"man"})

    assert "person" in widened
    assert "child" not in widened
