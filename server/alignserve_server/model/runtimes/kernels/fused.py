"""The image tower with our own convolutions, which read and write every map once."""

from __future__ import annotations

from typing import cast

import torch

from alignserve_server.model.runtimes.kernels import convolutions
from alignserve_server.model.runtimes.kernels.excitation import Excitation
from alignserve_server.model.runtimes.kernels.geometry import convolution_of, depthwise_of, pointwise_of
from alignserve_server.model.runtimes.towers import Block, Step, Towers


class FusedForward:
    """Shares the towers' weights, except for the small ones of the stem and the depthwise convolutions."""

    def __init__(self, towers: Towers) -> None:
        """Raises Unavailable if the kernels do not support the network."""
        tower = towers.image
        self._towers = towers
        self._stem = convolution_of(tower.stem, tower.padding)
        self._taps = self._stem.taps()
        self._blocks = [_Block(cast("Block", block)) for block in tower.blocks]

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeds (batch, height, width, 3) pixels."""
        towers, stem = self._towers, self._stem
        hidden = convolutions.stem(
            pixels,
            towers.scale,
            towers.offset,
            self._taps,
            stem.bias,
            stem.side,
            stem.stride,
            stem.padding,
            stem.activation,
        )
        for block in self._blocks:
            hidden = block(hidden)
        return towers.image.pooled(hidden).to(torch.float32)


class _Block:
    def __init__(self, block: Block) -> None:
        self._expand = pointwise_of(block.expand) if isinstance(block.expand, Step) else None
        self._depthwise = depthwise_of(block.depthwise, block.padding)
        self._taps = self._depthwise.taps()
        self._excitation = Excitation(block)
        self._project = pointwise_of(block.project)
        self._has_shortcut = block.has_shortcut

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        shortcut = hidden if self._has_shortcut else None
        expand, depthwise, project = self._expand, self._depthwise, self._project
        if expand is not None:
            hidden = convolutions.pointwise(hidden, expand.matrix, expand.bias, None, None, expand.activation)
        hidden, sums = convolutions.depthwise(
            hidden,
            self._taps,
            depthwise.bias,
            depthwise.side,
            depthwise.stride,
            depthwise.padding,
            depthwise.activation,
        )
        gate = self._excitation(sums, hidden.shape[2] * hidden.shape[3])
        projected: torch.Tensor = convolutions.pointwise(
            hidden, project.matrix, project.bias, gate, shortcut, project.activation
        )
        return projected
