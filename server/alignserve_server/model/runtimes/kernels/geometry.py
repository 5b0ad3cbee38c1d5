"""The shape of a convolution, as the kernels take it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from alignserve_server.model.runtimes.kernels.activations import activation_code
from alignserve_server.model.runtimes.kernels.unavailable import Unavailable
from alignserve_server.model.runtimes.towers import Step

Padding: TypeAlias = tuple[int, int, int, int]  # left, right, top, bottom

_NO_PADDING: Padding = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution with a bias, and the activation after it.

    Attributes:
        weight: (out_channels, channels / groups, side, side).
        bias: (out_channels,).
        padding: All of it, with that of a layer of its own before it.
        activation: As the kernels know it.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    side: int
    stride: int
    groups: int
    padding: Padding
    activation: int

    @property
    def own_padding(self) -> tuple[int, int]:
        """Padding above and at the left that torch's convolution can add by itself."""
        left, right, top, bottom = self.padding
        return (top, left) if left == right and top == bottom else (0, 0)

    @property
    def added_padding(self) -> Padding:
        """Padding that must be added to its input."""
        return self.padding if self.own_padding == (0, 0) else _NO_PADDING

    @property
    def matrix(self) -> torch.Tensor:
        """The weight of a pointwise convolution, (out_channels, channels)."""
        return self.weight.flatten(1)

    def taps(self) -> torch.Tensor:
        """Returns a copy of the weight as (side * side * channels / groups, out_channels)."""
        return self.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()


def pointwise_of(step: Step) -> Convolution:
    """Reads a step of one pixel. Raises Unavailable if it is not one, or the kernels do not support it."""
    convolution = convolution_of(step)
    if (convolution.side, convolution.stride, convolution.groups) != (1, 1, 1):
        raise Unavailable(f"the convolution {step.weighted} is not pointwise")
    return convolution


def depthwise_of(step: Step, before: nn.Module) -> Convolution:
    """Reads a step of one channel, like `pointwise_of`."""
    convolution = convolution_of(step, before)
    if not convolution.groups == len(convolution.weight) == convolution.weight.shape[1] * convolution.groups:
        raise Unavailable(f"the convolution {step.weighted} is not depthwise")
    return convolution


def convolution_of(step: Step, before: nn.Module | None = None) -> Convolution:
    """Reads a step, and the padding before it.

    Raises:
        Unavailable: The kernels do not support it.
    """
    weighted: Any = step.weighted
    is_square = (
        weighted.kernel_size[0] == weighted.kernel_size[1] and weighted.stride[0] == weighted.stride[1]
    )
    if not is_square or weighted.dilation != (1, 1) or weighted.bias is None:
        raise Unavailable(f"the convolution {weighted} is not supported")
    side = weighted.kernel_size[0]
    return Convolution(
        weighted.weight,
        weighted.bias,
        side,
        weighted.stride[0],
        weighted.groups,
        _padding(weighted, side, before),
        activation_code(step.activation),
    )


def _padding(weighted: Any, side: int, before: nn.Module | None) -> Padding:
    own = weighted.padding
    if own == "same":  # as torch: an odd one goes to the right and to the bottom
        least, most = (side - 1) // 2, side // 2
        own_padding = least, most, least, most
    elif own == "valid":
        own_padding = 0, 0, 0, 0
    else:
        own_padding = own[1], own[1], own[0], own[0]
    if before is None or isinstance(before, nn.Identity):
        return own_padding
    if not isinstance(before, nn.ZeroPad2d):
        raise Unavailable(f"the padding {before} is not supported")
    left, right, top, bottom = (a + b for a, b in zip(own_padding, before.padding, strict=True))
    return left, right, top, bottom
