"""Training on sets of labels."""

from __future__ import annotations

import torch

from server.recipes.mini.teacher import Noun
from server.recipes.mini.tuning import (
    best_agreement,
    blocks,
    known_by_mass,
    known_by_words,
    names_with_classes,
    set_loss,
)


def test_lite0_knows_only_what_it_is_sure_of() -> None:
    """Right above a half, wrong below a fiftieth with all that may be, else unknown."""
    shown, may = torch.tensor([0.9, 0.01, 0.2, 0.0]), torch.tensor([0.9, 0.01, 0.2, 0.7])

    assert known_by_mass(shown, may).tolist() == [1, 0, -1, -1]


def test_a_phrase_of_which_some_words_are_right_is_unknown() -> None:
    """`a brown cat` may or may not fit a brown dog's photo, and `kitchen` a picture of a cup."""
    right, may = torch.tensor([1.0, 0.0, 0.5, 0.0]), torch.tensor([1.0, 0.0, 0.5, 1.0])

    assert known_by_words(right, may).tolist() == [1, 0, -1, -1]


def test_the_name_that_fits_best_counts() -> None:
    """A noun may have several names; each photograph is compared with all of them."""
    names = [("ox", "farm animal"), ("cup",), ("sports car", "sedan", "car")]
    photos = [frozenset({"animal", "ox"}), frozenset({"sport", "cup"})]

    assert best_agreement(names, photos).tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.5]]


def test_everyday_words_say_what_classes_show() -> None:
    """An ox is a cow and no kitchen; of a cup on a table it is not known whether the table is in one."""
    nouns = [
        Noun(1, ("ox",), "", "class", (0,)),
        Noun(2, ("cup",), "", "class", (1,)),
        Noun(-1, ("cow", "farm animal"), "", "everyday", (0,)),
        Noun(-2, ("kitchen",), "", "everyday", (), (1,)),
        Noun(3, ("idea",), "", "other"),
    ]

    names = names_with_classes(nouns, torch.eye(5), [frozenset({"ox"}), frozenset({"cup"})])

    assert [noun.names[0] for noun in names.nouns] == ["ox", "cup", "cow", "kitchen"]
    assert names.shows.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0]]
    assert names.may.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]
    assert names.class_words == [frozenset({"ox", "cow"}), frozenset({"cup"})]
    assert names.class_may_words == [frozenset({"ox", "cow"}), frozenset({"cup", "kitchen"})]


def test_unknown_texts_have_no_part_in_the_loss() -> None:
    """However high an unknown text scores, the loss stays."""
    right = torch.tensor([[1, 0, -1], [0, 1, -1]])
    low, high = torch.zeros(2, 3), torch.zeros(2, 3)
    high[:, 2] = 100.0

    first, second = (set_loss(logits, right, torch.Generator().manual_seed(0)) for logits in (low, high))

    assert first == second


def test_the_loss_falls_as_the_right_text_rises() -> None:
    """It is the logarithm of the right text's score."""
    right = torch.tensor([[1, 0, 0, 0]] * 64)
    logits = torch.zeros(64, 4)
    raised = logits.clone()
    raised[:, 0] = 2.0

    before, after = (set_loss(each, right, torch.Generator().manual_seed(0)) for each in (logits, raised))

    assert after < before


def test_rows_without_a_right_or_a_wrong_text_do_not_count() -> None:
    """A step may draw nothing that is known."""
    loss = set_loss(torch.zeros(2, 2), torch.tensor([[0, 0], [1, -1]]), torch.Generator().manual_seed(0))

    assert loss == 0


def test_painted_pictures_and_the_others_know_nothing_of_each_other() -> None:
    """The painted ones are the first rows; their texts are the last columns."""
    both = blocks(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [1.0]]))

    assert both.tolist() == [[-1, 1, 0], [0, -1, -1], [1, -1, -1]]
