"""The image tower with cuDNN's convolutions, and one kernel after each for all that torch runs one by one."""

from __future__ import annotations

import torch
from torch.nn import functional

from alignserve_server.model.runtimes.kernels import passes
from alignserve_server.model.runtimes.kernels.activations import NONE
from alignserve_server.model.runtimes.kernels.geometry import Convolution
from alignserve_server.model.runtimes.kernels.image_forward import BlockForward, ImageForward
from alignserve_server.model.runtimes.towers import Towers


class EpilogueForward(ImageForward):
    """Shares the towers' weights."""

    def __init__(self, towers: Towers) -> None:
        """Raises Unavailable if the kernels do not support the network."""
        super().__init__(towers, _Block)

    def _stem_output(self, pixels: torch.Tensor) -> torch.Tensor:
        towers, stem = self._towers, self._stem
        images = pixels.permute(0, 3, 1, 2)
        rescaled = passes.finish_padded(
            images, towers.scale, towers.offset, NONE, stem.added_padding, towers.dtype
        )
        hidden = _convolved(rescaled, stem)
        passes.finish(hidden, stem.bias, None, None, stem.activation)
        return hidden


class _Block(BlockForward):
    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        shortcut = hidden if self._has_shortcut else None
        depthwise, project = self._depthwise, self._project
        hidden = _convolved(self._expanded(hidden), depthwise)
        # Read twice, written once: the activation is cheaper to repeat than to store.
        sums = passes.partial_sums(hidden, depthwise.bias, depthwise.activation)
        gate = self._excitation(sums, hidden.shape[2] * hidden.shape[3])
        passes.finish(hidden, depthwise.bias, gate, None, depthwise.activation)
        hidden = _convolved(hidden, project)
        passes.finish(hidden, project.bias, None, shortcut, project.activation)
        return hidden

    def _expanded(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the depthwise convolution's input, padded."""
        expand, padding = self._expand, self._depthwise.added_padding
        if expand is None:
            return functional.pad(hidden, padding) if any(padding) else hidden
        hidden = _convolved(hidden, expand)
        if any(padding):
            padded: torch.Tensor = passes.finish_padded(
                hidden, None, expand.bias, expand.activation, padding, hidden.dtype
            )
            return padded
        passes.finish(hidden, expand.bias, None, None, expand.activation)
        return hidden


def _convolved(hidden: torch.Tensor, convolution: Convolution) -> torch.Tensor:
    """Convolves without the bias, into a new map that may be changed."""
    return functional.conv2d(
        hidden,
        convolution.weight,
        stride=convolution.stride,
        padding=convolution.own_padding,
        groups=convolution.groups,
    )
