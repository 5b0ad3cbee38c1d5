"""The image tower with our own convolutions, which read and write every map once."""

from __future__ import annotations

import torch

from alignserve_server.model.runtimes.kernels import convolutions
from alignserve_server.model.runtimes.kernels.image_forward import BlockForward, ImageForward
from alignserve_server.model.runtimes.towers import Block, Towers


class FusedForward(ImageForward):
    """Shares the towers' weights, except for the small ones of the stem and the depthwise convolutions."""

    def __init__(self, towers: Towers) -> None:
        """Raises Unavailable if the kernels do not support the network."""
        super().__init__(towers, _Block)
        self._taps = self._stem.taps()

    def _stem_output(self, pixels: torch.Tensor) -> torch.Tensor:
        towers, stem = self._towers, self._stem
        hidden: torch.Tensor = convolutions.stem(
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
        return hidden


class _Block(BlockForward):
    def __init__(self, block: Block) -> None:
        super().__init__(block)
        self._taps = self._depthwise.taps()

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
