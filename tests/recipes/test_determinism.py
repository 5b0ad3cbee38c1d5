"""Two trainings with the same seed end in the same weights."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from server.recipes.mini import text, training, tuning, vision
from server.recipes.mini.captions import Photo, known, phrases_of
from server.recipes.mini.imagined import Imagined
from server.recipes.mini.meaning import Implications
from server.recipes.mini.teacher import Noun
from server.recipes.mini.vocabulary import SPECIAL
from server.recipes.mini.wordnet import WordNet

_WORDS = ("a", "photo", "of", "dog", "cat", "animal", "red", "sofa", "the", "picture")
_NOUNS = (
    Noun(1, ("dog",), "an animal that barks", "class", (0,)),
    Noun(2, ("cat",), "an animal that purrs", "class", (1,)),
    Noun(3, ("animal",), "a living thing", "above", (0, 1)),
    Noun(4, ("sofa",), "a seat", "other"),
)
_SCHEDULE = training.Schedule(steps=1, batch=4, old_rate=1e-4, new_rate=1e-3)


@functools.cache
def _new_tower() -> text.TextTower:
    torch.manual_seed(0)
    return text.TextTower([*SPECIAL, *(chr(at) for at in range(97, 123)), *_WORDS])


def _tower() -> text.TextTower:
    return copy.deepcopy(_new_tower())


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _weights_of(*modules: nn.Module) -> str:
    digest = hashlib.sha256()
    for module in modules:
        for tensor in module.state_dict().values():
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _trained_on_nouns(seed: int, draw_seed: int = 0) -> str:
    tower = _tower()
    targets = nn.functional.normalize(_random(4, vision.DIMENSION))
    sampler = training.NounSampler(_NOUNS, targets, np.random.default_rng(draw_seed))
    meanings = nn.functional.normalize(_random(len(_WORDS), text.WIDTH))
    sentences = training.Sentences(_WORDS, meanings, draw_seed)
    training.train_nouns(tower, sampler, sentences, targets[:2], _SCHEDULE, seed, lambda step, loss: None)
    return _weights_of(tower)


def _trained_on_sets(seed: int, *, bfloat16: bool = False) -> str:
    tower = _tower()
    weight, spread = 0.05 * _random(vision.DIMENSION, vision.FEATURES), torch.ones(vision.DIMENSION)
    head = vision.linear_head(weight, torch.zeros(vision.DIMENSION), spread, seed=0)
    photos = [
        Photo("a.jpg", ("a dog",), ("dog", "animal")),
        Photo("b.jpg", ("a red sofa",), ("sofa",), colours=("red sofa",)),
    ]
    data = tuning.Photos(
        _random(2, 2, vision.FEATURES).abs(),
        known([phrases_of(photo) for photo in photos], Implications(WordNet({}, {}))),
    )
    targets = nn.functional.normalize(_random(4, vision.DIMENSION))
    names = tuning.names_with_classes(_NOUNS, targets, [frozenset({"dog"}), frozenset({"cat"})])
    classifier = nn.Linear(vision.FEATURES, 2)
    nn.init.normal_(classifier.weight, generator=torch.Generator().manual_seed(2))
    nn.init.zeros_(classifier.bias)
    imagined = Imagined(
        data.features.flatten(0, 1),
        classifier.weight.detach(),
        classifier.bias.detach(),
        torch.Generator().manual_seed(seed),
    )
    sampler = tuning.SetSampler(data, names, imagined, classifier, seed)
    kept = training.NounSampler(_NOUNS, targets, np.random.default_rng(seed))
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    end = {id(parameter) for parameter in tower.parameters_of_end()}
    tuning.train_sets(
        tower,
        tuning.Remembered(tower, bfloat16=bfloat16),
        head,
        sampler,
        kept,
        targets[:2],
        1,
        seed,
        lambda step, loss: None,
        bfloat16=bfloat16,
    )
    for name, parameter in tower.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) not in end), name
    return _weights_of(tower, head)


@pytest.mark.long
@pytest.mark.parametrize(
    "train", [_trained_on_nouns, _trained_on_sets, functools.partial(_trained_on_sets, bfloat16=True)]
)
def test_the_seed_decides_the_weights(train: Callable[[int], str]) -> None:
    """The same seed gives the same bytes, another seed others."""
    first, again, other = train(0), train(0), train(1)

    assert first == again
    assert first != other
