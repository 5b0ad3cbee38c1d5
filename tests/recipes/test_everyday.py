"""The list of everyday words over ImageNet's classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.recipes.mini import everyday
from server.recipes.mini.imagenet import ImageClass
from server.recipes.mini.wordnet import Synset, WordNet

_NET = WordNet({9: Synset(9, ("cattle",), (), "")}, {"cattle": (9,)})
_CLASSES = [ImageClass(1, ("ox",)), ImageClass(2, ("water buffalo",)), ImageClass(3, ("barn", "ox house"))]
_BELOW = {9: [0, 1]}


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A file for a list."""
    return tmp_path / "everyday.txt"


def test_a_line_names_classes_by_name_and_by_kind(listed: Path) -> None:
    """`<cattle>` are all classes below it. What shows a thing is not listed again as what may."""
    listed.write_text("# farms\n\ncow, bull | Ox | <cattle>, ox house\n", "utf-8")

    assert everyday.read(_NET, _CLASSES, _BELOW, listed) == [everyday.Everyday(("cow", "bull"), (0,), (1, 2))]


def test_a_class_can_be_taken_out_of_a_kind(listed: Path) -> None:
    """At any place in the line."""
    listed.write_text("cow | -water buffalo, <cattle> |\n", "utf-8")

    assert everyday.read(_NET, _CLASSES, _BELOW, listed)[0].shows == (0,)


@pytest.mark.parametrize("line", ["cow | oxx |", "cow | <ship> |"])
def test_what_does_not_exist_is_refused(line: str, listed: Path) -> None:
    """A typing error would otherwise teach nothing, unseen."""
    listed.write_text(line, "utf-8")

    with pytest.raises(ValueError, match=r"oxx|ship"):
        everyday.read(_NET, _CLASSES, _BELOW, listed)


def test_no_name_is_listed_twice() -> None:
    """Two lines for a word would contradict each other."""
    lines = [line for line in everyday.LIST.read_text("utf-8").splitlines() if "|" in line and line[0] != "#"]
    names = [name.strip() for line in lines for name in line.split("|")[0].split(",")]

    assert sorted({name for name in names if names.count(name) > 1}) == []
