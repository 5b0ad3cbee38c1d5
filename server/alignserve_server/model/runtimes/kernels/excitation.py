"""Squeeze and excitation: from the mean of every channel to the gate that scales it."""

from __future__ import annotations

import torch

from alignserve_server.model.runtimes.kernels import passes
from alignserve_server.model.runtimes.kernels.geometry import pointwise_of
from alignserve_server.model.runtimes.towers import Block


class Excitation:
    """Two small kernels: every image's matrices are spread over the GPU, which one kernel could not."""

    def __init__(self, block: Block) -> None:
        """Raises Unavailable if the kernels do not support it."""
        self._squeeze, self._excite = pointwise_of(block.squeeze), pointwise_of(block.excite)

    def __call__(self, sums: torch.Tensor, pixels: int) -> torch.Tensor:
        """Returns a (batch, channels) gate from the partial sums of a map, and its number of pixels."""
        squeeze, excite = self._squeeze, self._excite
        squeezed = passes.squeeze(sums, pixels, squeeze.matrix, squeeze.bias, squeeze.activation)
        gate: torch.Tensor = passes.excite(squeezed, excite.matrix, excite.bias, excite.activation)
        return gate
