"""WordNet's files, and the targets that follow from them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from server.recipes.mini import teacher, wordnet
from server.recipes.mini.imagenet import ImageClass, names_of

_ANIMAL = '00015388 03 n 02 animal 0 beast 0 001 ~ 02084071 n 0000 | a living organism; "a beast"  '
_DOG = "02084071 05 n 01 dog 0 002 @ 00015388 n 0000 ~ 02085374 n 0000 | a member of the genus Canis  "
_TOY = "02085374 05 n 01 toy_dog 0 001 @ 02084071 n 0000 | any of several breeds  "
_HUNTER = "02087122 05 n 01 hunting_dog 0 001 @ 02084071 n 0000 | a dog used in hunting  "


@pytest.fixture
def net() -> wordnet.WordNet:
    """Four synsets: two kinds of dog, dog, animal."""
    synsets = [wordnet.parse_synset(line) for line in (_ANIMAL, _DOG, _TOY, _HUNTER)]
    return wordnet.WordNet({each.offset: each for each in synsets}, {"dog": (2084071, 1), "animal": (15388,)})


def test_a_line_becomes_a_synset_with_spaces_in_names() -> None:
    """`toy_dog` is written with a space, and its kind is the synset that `@` points to."""
    assert wordnet.parse_synset(_TOY) == wordnet.Synset(
        2085374, ("toy dog",), (2084071,), "any of several breeds"
    )


def test_a_definition_leaves_out_the_examples() -> None:
    """Examples follow the definition, in quotes."""
    assert wordnet.definition(wordnet.parse_synset(_ANIMAL)) == "a living organism"


def test_an_index_line_lists_meanings_by_frequency() -> None:
    """The offsets are the last fields, the commonest first."""
    line = "dog n 2 5 @ ~ #m #p %p 2 1 02084071 10114209  "

    assert wordnet.parse_senses(line) == ("dog", (2084071, 10114209))


def test_a_synset_is_below_all_its_kinds(net: wordnet.WordNet) -> None:
    """Steps count from the synset itself."""
    assert net.above(2085374) == {2085374: 0, 2084071: 1, 15388: 2}


def test_a_kind_points_to_the_mean_of_its_classes(net: wordnet.WordNet) -> None:
    """Every synset above a class covers it."""
    classes = [ImageClass(2085374, ("toy dog",)), ImageClass(2087122, ("hunting dog",))]
    directions = np.array([[1, 0], [0, 1]], np.float32)

    below = teacher.leaves(net, classes)
    means = teacher.mean_directions(below, directions)

    assert below == {2085374: [0], 2084071: [0, 1], 15388: [0, 1], 2087122: [1]}
    np.testing.assert_allclose(means[2084071], [0.5**0.5, 0.5**0.5], rtol=1e-6)


def test_the_nearest_covered_kind_is_the_one_with_fewest_steps(net: wordnet.WordNet) -> None:
    """`toy dog` has no classes here; `dog` is one step above it."""
    assert teacher.nearest_covered(net, 2085374, {2084071: [0], 15388: [0, 1]}) == (2084071, 1)


def test_a_hint_in_brackets_joins_the_name() -> None:
    """`kite (bird of prey)` is found under both spellings, the clearer one first."""
    names = names_of("kite (bird of prey)", ["kite", "Milvus (genus)"], ("kite",))

    assert names == ("kite bird of prey", "kite", "Milvus")


def test_only_what_a_photograph_can_show_teaches() -> None:
    """Things and works with a name do; ideas, towns and persons with a name do not."""
    kinds = {"physical entity": (), "artifact": ("physical entity",), "idea": ()}
    kinds |= {"tower": ("artifact",), "Eiffel Tower": ("artifact",), "Paris": ("physical entity",)}
    offsets = {name: at for at, name in enumerate(kinds)}
    synsets = {
        offsets[name]: wordnet.Synset(
            offsets[name], (name,), tuple(offsets[kind] for kind in above), "", is_name=name[0].isupper()
        )
        for name, above in kinds.items()
    }
    net = wordnet.WordNet(synsets, {name: (at,) for name, at in offsets.items()})

    chosen = teacher.commonest_nouns(
        net, ["tower"], Counter(), {offsets["artifact"], offsets["physical entity"]}, 9
    )

    assert [net.synsets[at].names[0] for at in chosen] == ["tower", "Eiffel Tower"]


def test_a_name_of_one_thing_is_told_from_a_kind() -> None:
    """`@i` points to what it is an instance of."""
    line = "02801525 06 n 01 Big_Ben 0 001 @i 03046257 n 0000 | clock in the tower  "

    assert wordnet.parse_synset(line).is_name
    assert not wordnet.parse_synset(_DOG).is_name
