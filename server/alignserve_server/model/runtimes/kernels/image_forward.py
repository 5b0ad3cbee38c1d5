"""What the image tower's forwards by kernels have in common: its parts, and their order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import cast

import torch

from alignserve_server.model.runtimes.kernels.excitation import Excitation
from alignserve_server.model.runtimes.kernels.geometry import convolution_of, depthwise_of, pointwise_of
from alignserve_server.model.runtimes.towers import Block, Step, Towers


class BlockForward(ABC):
    """A block of the tower. Shares its weights."""

    def __init__(self, block: Block) -> None:
        """Raises Unavailable if the kernels do not support the block."""
        self._expand = pointwise_of(block.expand) if isinstance(block.expand, Step) else None
        self._depthwise = depthwise_of(block.depthwise, block.padding)
        self._excitation = Excitation(block)
        self._project = pointwise_of(block.project)
        self._has_shortcut = block.has_shortcut

    @abstractmethod
    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the block's (batch, channels, height, width) output."""


class ImageForward(ABC):
    """The whole tower. Shares the towers' weights."""

    def __init__(self, towers: Towers, block_forward: Callable[[Block], BlockForward]) -> None:
        """Raises Unavailable if the kernels do not support the network."""
        tower = towers.image
        self._towers = towers
        self._stem = convolution_of(tower.stem, tower.padding)
        self._blocks = [block_forward(cast("Block", block)) for block in tower.blocks]

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeds (batch, height, width, 3) pixels."""
        hidden = self._stem_output(pixels)
        for block in self._blocks:
            hidden = block(hidden)
        return self._towers.image.pooled(hidden).to(torch.float32)

    @abstractmethod
    def _stem_output(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns the (batch, channels, height, width) input of the first block."""
