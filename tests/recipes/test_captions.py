"""What captions and lists say about photographs, and about each other's phrases."""

from __future__ import annotations

import pytest

from server.recipes.mini.captions import Known, Photo, Phrase, counted, known, phrases_of, recoloured
from server.recipes.mini.meaning import Implications
from server.recipes.mini.wordnet import WordNet

_RUNNER = Photo(
    "a.jpg", ("a man running on a beach",), ("sea",), ("man",), ("running",), (), ("beach", "outdoors")
)
_SOFA = Photo("b.jpg", ("an orange sofa",), ("sofa",), (), (), ("orange sofa",), ("living room", "indoors"))
_APPLE = Photo("c.jpg", ("an apple",), ("apple",))


@pytest.fixture(scope="module")
def all_known() -> Known:
    """The three photographs, without WordNet."""
    return known([phrases_of(photo) for photo in (_RUNNER, _SOFA, _APPLE)], Implications(WordNet({}, {})))


def _right(every: Known, text: str) -> list[int]:
    column = next(at for at, phrase in enumerate(every.phrases) if phrase.text == text)
    return [int(value) for value in every.right[:, column]]


def test_people_actions_and_places_are_combined() -> None:
    """`running` by itself, and with the runner."""
    texts = {phrase.text for phrase in phrases_of(_RUNNER)}

    assert {"running", "a man running", "a person running", "a man in the beach"} <= texts
    assert "an empty beach" not in texts


def test_a_place_without_people_is_empty() -> None:
    """So that `an empty beach` is not every beach."""
    texts = {phrase.text for phrase in phrases_of(_SOFA)}

    assert "an empty living room" in texts


def test_a_colour_also_stands_by_itself() -> None:
    """`orange` for an orange sofa."""
    assert Phrase("orange", "hue") in phrases_of(_SOFA)


def test_another_colour_of_the_same_thing_is_wrong(all_known: Known) -> None:
    """It shares the word `sofa`, which would otherwise leave it open; the apple's colour is not known."""
    assert _right(all_known, "blue sofa") == [0, 0, 0]
    assert len(recoloured(Phrase("orange sofa", "colour"))) == 10


def test_a_hue_is_judged_only_where_colours_were_looked_at(all_known: Known) -> None:
    """The apple may be orange."""
    assert _right(all_known, "orange") == [-1, 1, -1]


def test_a_place_is_judged_only_where_places_were_looked_at(all_known: Known) -> None:
    """The apple may lie on a beach."""
    assert _right(all_known, "beach") == [1, 0, -1]


def test_words_that_a_photograph_implies_are_right(all_known: Known) -> None:
    """A man is a person."""
    assert _right(all_known, "a person running") == [1, 0, 0]


@pytest.mark.parametrize(
    ("people", "text"),
    [
        (("old man", "man"), "one person"),
        (("man", "woman"), "two people"),
        (("couple",), "two people"),
        (("group of people", "men"), "several people"),
        (("three women",), "several people"),
        (("crowd", "group of people"), "a crowd"),
    ],
)
def test_tags_say_how_many_people_there_are(people: tuple[str, ...], text: str) -> None:
    """Two tags for the same person are one person."""
    assert counted(people)[0] == text


@pytest.mark.parametrize("people", [(), ("children",), ("man", "woman", "child")])
def test_the_number_of_people_may_be_unknown(people: tuple[str, ...]) -> None:
    """A plural says at least two."""
    assert counted(people) == ()


def test_another_number_of_people_is_wrong() -> None:
    """Although `two people` and `one person` share `person`. Without tags the number is not known."""
    pair = Photo("d.jpg", ("two men",), (), ("men", "two people"))
    untold = Photo("e.jpg", ("people in a street",), ("person",))

    every = known([phrases_of(photo) for photo in (_RUNNER, pair, untold)], Implications(WordNet({}, {})))

    assert _right(every, "one person") == [1, 0, -1]
    assert _right(every, "two people") == [0, 1, -1]


def test_collections_are_withheld_as_a_whole() -> None:
    """Only the collection's name decides, for about one in five."""
    withheld = [
        {Photo(f"{at}.jpg", ("x",), collection=str(name)).is_withheld for at in range(5)}
        for name in range(600)
    ]

    assert all(len(each) == 1 for each in withheld)
    assert 90 < sum(each == {True} for each in withheld) < 150
