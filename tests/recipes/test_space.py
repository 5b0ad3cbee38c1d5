"""The elements of an embedding: those of classes, and free ones."""

from __future__ import annotations

import torch
from torch import nn

from server.recipes.mini.space import CLASS_DIMENSION, ImageSpace, with_free_elements
from server.recipes.mini.vision import DIMENSION, FEATURES


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_free_elements_show_what_the_classes_do_not() -> None:
    """The elements of classes stay; the others vary over photographs about as much, each around 0."""
    weight = torch.zeros(DIMENSION, FEATURES)
    weight[:CLASS_DIMENSION, :CLASS_DIMENSION] = torch.eye(CLASS_DIMENSION)
    spread = torch.ones(DIMENSION)
    space = ImageSpace(weight, torch.zeros(DIMENSION), nn.functional.normalize(weight), spread)
    photos = _random(96, FEATURES)

    wider = with_free_elements(space, photos)
    elements = photos @ wider.weight.T + wider.bias

    torch.testing.assert_close(wider.weight[:CLASS_DIMENSION], weight[:CLASS_DIMENSION])
    assert wider.weight[CLASS_DIMENSION:, :CLASS_DIMENSION].abs().max() < 1e-5
    torch.testing.assert_close(
        elements[:, CLASS_DIMENSION:].std(dim=0), torch.ones(DIMENSION - CLASS_DIMENSION)
    )
    assert elements[:, CLASS_DIMENSION:].mean(dim=0).abs().max() < 1e-4
