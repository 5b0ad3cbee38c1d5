"""Rounds the towers to bfloat16 on a CPU, as `bfloat16` explains."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from alignserve_server.model.runtimes import bfloat16
from alignserve_server.model.runtimes.towers import Towers


@torch.no_grad()
def round_towers(towers: Towers) -> None:
    """Rounds towers from float32, in place, except for the first part of the image tower."""
    towers.text.to(torch.bfloat16)
    blocks: list[Any] = list(towers.image.blocks)
    first, others = blocks[: bfloat16.FLOAT32_BLOCKS], blocks[bfloat16.FLOAT32_BLOCKS :]
    for block in others:
        weight = block.depthwise.weighted.weight
        rounded = bfloat16.balanced(weight.reshape(len(weight), -1).numpy())
        weight.copy_(torch.from_numpy(rounded).view_as(weight))
        block.to(torch.bfloat16)
    towers.image.blocks = nn.Sequential(*first, _ToBfloat16(), *others)


class _ToBfloat16(nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.to(torch.bfloat16)
