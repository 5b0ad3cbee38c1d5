"""The image tower through torch.compile: Inductor fuses what it can, for minutes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from alignserve_server.model.runtimes.towers import Towers


class CompiledForward:
    """Compiles twice, whatever the number of batch sizes: for one image, and for any larger batch."""

    def __init__(self, towers: Towers, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compiles nothing yet: the first batches do."""
        self._run = torch.compile(towers.embed_pixels_plainly, dynamic=False, fullgraph=True, backend=backend)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeds (batch, height, width, 3) pixels."""
        if len(pixels) > 1:
            torch._dynamo.mark_dynamic(pixels, 0)
        embeddings: torch.Tensor = self._run(pixels)
        return embeddings
