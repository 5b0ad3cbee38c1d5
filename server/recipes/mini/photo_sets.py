"""The stages that train on photographs: their features and the training itself.

A rehearsal is the same training without some collections. The checkpoint itself is trained on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from server.recipes.mini import captions, features, imagenet, nouns, text_start, tuning
from server.recipes.mini.captions import Photo
from server.recipes.mini.imagined import Imagined
from server.recipes.mini.meaning import Implications, content_words, said_alone
from server.recipes.mini.space import ImageSpace, lite0_state, with_free_elements
from server.recipes.mini.teacher import Noun
from server.recipes.mini.text import TextTower
from server.recipes.mini.training import NounSampler
from server.recipes.mini.vision import FEATURES, LITE0_FEATURES, Lite0, linear_head

TRAININGS = 2
"""Number of trainings whose weights are averaged."""

_FEATURES = "features.safetensors"


def extract(
    sources: Path,
    photos: Sequence[Path],
    out: Path,
    views: int,
    seed: int,
    device: torch.device,
    report: Callable[[int, int], None],
) -> None:
    """Writes `features.safetensors`, (photos, views, FEATURES)."""
    model = Lite0({name: tensor.to(device) for name, tensor in lite0_state(sources).items()})
    save_file({"features": features.extract(model, photos, views, seed, report)}, out / _FEATURES)


def read_features(folder: Path) -> Tensor:
    """What `extract` wrote."""
    return load_file(folder / _FEATURES)["features"]


@dataclass(frozen=True)
class Inputs:
    """The folders of earlier stages."""

    sources: Path
    space: Path
    nouns: Path
    text: Path
    training: Path
    features: Path


def train(
    inputs: Inputs,
    photos: Sequence[Photo],
    out: Path,
    steps: int,
    seed: int,
    device: torch.device,
    report: Callable[[int, int, float], None],
    *,
    is_rehearsal: bool,
    bfloat16: bool,
) -> None:
    """Writes `tower.safetensors` and `head.safetensors`: the mean of the weights of several trainings.

    They start from the same weights and differ in what they draw, so that the mean of their weights is a good
    model as well (Wortsman et al., 2022, https://arxiv.org/abs/2203.05482). `report` gets the training, the
    step and the loss.
    """
    data = TrainingData.read(inputs, photos, is_rehearsal=is_rehearsal)
    remembered = tuning.Remembered(start_tower(inputs, device), bfloat16=bfloat16)
    trained = []
    for training in range(TRAININGS):
        draw_seed = seed * TRAININGS + training
        tower = start_tower(inputs, device)
        head = linear_head(data.space.weight, data.space.bias, data.space.spread, seed).to(device)
        tuning.train_sets(
            tower,
            remembered,
            head,
            data.sets(draw_seed),
            NounSampler(*data.nouns, np.random.default_rng([draw_seed, 4])),
            data.space.classes.to(device),
            steps,
            draw_seed,
            partial(report, training),
            bfloat16=bfloat16,
        )
        trained.append((tower.cpu().state_dict(), head.cpu().state_dict()))
    save_file(mean_of_weights([tower for tower, _ in trained]), out / "tower.safetensors")
    save_file(mean_of_weights([head for _, head in trained]), out / "head.safetensors")


def start_tower(inputs: Inputs, device: torch.device) -> TextTower:
    """The text tower as nouns trained it."""
    return text_start.read(inputs.text / "vocab.txt", inputs.training / "tower.safetensors").to(device)


@dataclass(frozen=True)
class TrainingData:
    """What trainings have in common: photographs, names, nouns to hold on to, Lite0's classifier."""

    photos: tuning.Photos
    names: tuning.Names
    nouns: tuple[list[Noun], Tensor]
    space: ImageSpace
    classifier: nn.Linear

    @classmethod
    def read(cls, inputs: Inputs, photos: Sequence[Photo], *, is_rehearsal: bool) -> TrainingData:
        """Reads what earlier stages wrote."""
        rows = learned(photos, is_rehearsal=is_rehearsal)
        found = read_features(inputs.features)[rows]
        phrases = [captions.phrases_of(photos[at]) for at in rows]
        space = ImageSpace(**load_file(inputs.space / "space.safetensors"))
        return cls(
            tuning.Photos(found, captions.known(phrases, Implications(nouns.read_wordnet(inputs.sources)))),
            read_names(inputs.sources, inputs.nouns),
            not_shown(*nouns.read(inputs.nouns), {phrase.text for each in phrases for phrase in each}),
            with_free_elements(space, found.flatten(0, 1)),
            classifier(lite0_state(inputs.sources)),
        )

    def sets(self, seed: int) -> tuning.SetSampler:
        """Draws steps by the seed."""
        imagined = Imagined(
            self.photos.features.flatten(0, 1),
            self.classifier.weight.detach(),
            self.classifier.bias.detach(),
            torch.Generator().manual_seed(seed),
        )
        return tuning.SetSampler(self.photos, self.names, imagined, self.classifier, seed)


def learned(photos: Sequence[Photo], *, is_rehearsal: bool) -> list[int]:
    """Which photographs train, by index: in a rehearsal, those that are not withheld from it."""
    return [at for at, photo in enumerate(photos) if not (is_rehearsal and photo.is_withheld)]


def mean_of_weights(models: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Averages each tensor over models of the same shape."""
    return {name: torch.stack([model[name] for model in models]).mean(dim=0) for name in models[0]}


def not_shown(listed: Sequence[Noun], targets: Tensor, said: set[str]) -> tuple[list[Noun], Tensor]:
    """The nouns but those without classes that photographs show: these know better what they look like."""
    words = {content_words(text) for text in said}
    kept = [
        at
        for at, noun in enumerate(listed)
        if noun.shows or words.isdisjoint(content_words(name) for name in noun.names)
    ]
    return [listed[at] for at in kept], targets[kept]


def classifier(lite0: dict[str, Tensor]) -> nn.Linear:
    """Lite0's classifier. It does not look at the features of colour and of the last map."""
    weight, more = lite0["_fc.weight"], FEATURES - LITE0_FEATURES
    layer = nn.Linear(FEATURES, len(weight))
    layer.load_state_dict({"weight": nn.functional.pad(weight, (0, more)), "bias": lite0["_fc.bias"]})
    return layer


def read_names(sources: Path, listed: Path) -> tuning.Names:
    net = nouns.read_wordnet(sources)
    classes = imagenet.read(sources, net)
    class_words = []
    for each in classes:
        names = {name for offset in net.above(each.offset) for name in nouns.own_names(net, offset)}
        class_words.append(frozenset().union(*(said_alone(name) for name in (*each.names, *names))))
    return tuning.names_with_classes(*nouns.read(listed), class_words)
