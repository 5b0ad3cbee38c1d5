"""Colours, carried past Lite0 to the head: Lite0 forgets them, because classes of things have many.

Eight channels next to Lite0's own hold how far each pixel is from grey in six directions, how bright it is,
and a constant. Every stage hands them on, averaged as the map shrinks. In each of the 7 x 7 cells that
remain, units look at them. The means of the units over the cells are features.

The first units are the channels themselves, then units fitted to names of colours. The others are fitted
likewise, but look at the middle 5 x 5 cells only, where the subject of a photograph mostly is: the last stage
takes the mean of the constant over 3 x 3 cells, which falls at the border, where zeros surround the map.
"""

from __future__ import annotations

import colorsys
import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

CHANNELS = 8
UNITS = 40
NAMES = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey",
)  # fmt: skip

WHOLE_UNITS = 18  # the first ones, which look at all cells

_PLAIN = 7  # channels without the constant
_GAIN = 3.0  # the largest difference of two pixel values, 2, becomes 6
_SHRINK = 16  # from the first map, 112 x 112, to the cells
_CELLS = 7  # of the last map, each way
_TOGETHER = 128
_SHADES = 11
_CONSTANT = 6.0
_CLOSED = 4.0  # a unit loses this times the fall: 8 or more at the border, and a shade gives 5.3
_STRENGTH = 1e-2
_HUES = ((42, "orange"), (68, "yellow"), (165, "green"), (260, "blue"), (300, "purple"), (345, "pink"))
# Neighbours on the wheel of colours: the difference to one colour tells it from the next.
_GROUPS = (
    "red orange", "orange yellow", "orange brown", "yellow green", "green blue", "blue purple", "purple pink",
    "red pink", "black grey", "white grey", "red orange yellow brown",
)  # fmt: skip


def local_weight() -> Tensor:
    """(CHANNELS, 3): what a channel computes of a pixel's red, green and blue, before bias and ReLU6."""
    differences = torch.tensor([[1.0, -1, 0], [1, 0, -1], [0, 1, -1]])
    return _GAIN * torch.cat([differences, -differences, torch.full((1, 3), 1 / 3), torch.zeros(1, 3)])


def local_bias() -> Tensor:
    """(CHANNELS,): brightness in -1..1 becomes 0..6, and the last channel is constant."""
    return torch.tensor([0.0] * 6 + [_GAIN, _CONSTANT])


def local_channels(pixels: Tensor) -> Tensor:
    """(batch, CHANNELS, height / 2, width / 2) of pixels (batch, 3, height, width) in -1..1."""
    halved = nn.functional.avg_pool2d(pixels, 2)
    weight, bias = local_weight()[:, :, None, None].to(pixels.device), local_bias().to(pixels.device)
    return nn.functional.conv2d(halved, weight, bias).clamp(0, 6)


def features(pixels: Tensor) -> Tensor:
    """(batch, UNITS) of pixels (batch, 3, 224, 224), each in 0..6."""
    weight, bias = (each.to(pixels.device) for each in cell_units())
    cells = nn.functional.avg_pool2d(local_channels(pixels), _SHRINK)
    constant = nn.functional.avg_pool2d(cells[:, -1:], 3, stride=1, padding=1)
    cells = torch.cat([cells[:, :-1], constant], dim=1)
    return nn.functional.conv2d(cells, weight[:, :, None, None], bias).clamp(0, 6).mean(dim=(2, 3))


def averaging(size: int, stride: int, is_last: bool) -> Tensor:
    """(CHANNELS, 1, size, size): kernels that keep a pixel, or with stride 2 take the mean of 2 x 2.

    In the last stage the constant's is the mean of 3 x 3.
    """
    kernel = torch.zeros(CHANNELS, 1, size, size)
    first = (size - stride) // 2
    kernel[:, :, first : first + stride, first : first + stride] = 1 / stride**2
    if is_last:
        kernel[-1] = 1 / size**2
    return kernel


@functools.cache
def cell_units() -> tuple[Tensor, Tensor]:
    """Weights (UNITS, CHANNELS) and biases (UNITS,).

    A colour's unit is fitted by ridge regression to be 3 for evenly spaced shades of that name, else 0.
    """
    groups = [*NAMES, *NAMES, *_GROUPS]
    wanted = torch.tensor(
        [[3.0 * (colour_name(*shade) in group.split()) for group in groups] for shade in _shades()]
    )
    seen = _channels_of(_shades())[:, :_PLAIN].double()
    inputs = torch.cat([seen, torch.ones(len(seen), 1, dtype=torch.float64)], dim=1)
    gram = inputs.T @ inputs + _STRENGTH * len(seen) * torch.eye(_PLAIN + 1, dtype=torch.float64)
    fitted = torch.linalg.solve(gram, inputs.T @ wanted.double()).T.float()
    closed = torch.full((len(groups),), _CLOSED)
    closed[: len(NAMES)] = 0
    weight = torch.cat([torch.eye(_PLAIN, CHANNELS), torch.cat([fitted[:, :-1], closed[:, None]], dim=1)])
    return weight, torch.cat([torch.zeros(_PLAIN), fitted[:, -1] - _CONSTANT * closed])


def named_shades() -> tuple[list[str], Tensor]:
    """Evenly spaced shades: their names, and the features of a picture of that shade, (shades, UNITS)."""
    shades = _shades()
    size = 2 * _SHRINK * _CELLS
    pictures = _pixels_of(shades)
    found = [features(some.expand(-1, -1, size, size)) for some in pictures.split(_TOGETHER)]
    return [colour_name(*shade) for shade in shades], torch.cat(found)


def _shades() -> list[tuple[float, float, float]]:
    steps = [at / (_SHADES - 1) for at in range(_SHADES)]
    return list(itertools.product(steps, steps, steps))


def _channels_of(shades: Sequence[tuple[float, float, float]]) -> Tensor:
    """(shades, CHANNELS)."""
    return local_channels(_pixels_of(shades).expand(-1, -1, 2, 2)).flatten(1)


def _pixels_of(shades: Sequence[tuple[float, float, float]]) -> Tensor:
    """(shades, 3, 1, 1), in -1..1."""
    return 2 * torch.tensor(shades)[:, :, None, None] - 1


def colour_name(red: float, green: float, blue: float) -> str:
    """What people call a shade, given in 0..1."""
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    degrees = 360 * hue
    if value < 0.2:
        return "black"
    if saturation < 0.15:
        return "white" if value > 0.85 else "grey"
    if 12 <= degrees < 48 and value < 0.7:
        return "brown"
    if degrees < 12 or degrees >= 345:
        return "pink" if saturation < 0.6 else "red"
    return next(name for end, name in _HUES if degrees < end)
