"""Converts the towers of an optimized AlignModel into OpenVINO models."""

from __future__ import annotations

from typing import Any

import openvino as ov
import torch
from torch import nn

from alignserve_server.model import network as networks
from alignserve_server.model.network import Network
from alignserve_server.model.runtime import Probe, Rescaling


def convert_image_tower(network: Network, rescaling: Rescaling, probe: Probe) -> Any:
    """Returns a model from (batch, height, width, 3) uint8 pixels to embeddings."""
    _, height, width, _ = probe.pixels.shape
    tower = _ImageTower(network, rescaling).eval()
    with torch.no_grad():
        return ov.convert_model(
            tower,
            example_input=torch.from_numpy(probe.pixels),
            input=[([-1, height, width, 3], ov.Type.u8)],
        )


def convert_text_tower(network: Network, probe: Probe) -> Any:
    """Returns a model from (batch, length) input_ids and attention_mask to embeddings."""
    example = (torch.from_numpy(probe.input_ids), torch.from_numpy(probe.attention_mask))
    tower = _TextTower(network).eval()
    with torch.no_grad():
        return ov.convert_model(
            tower, example_input=example, input=[([-1, -1], ov.Type.i64), ([-1, -1], ov.Type.i64)]
        )


class _ImageTower(nn.Module):
    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(self, network: Network, rescaling: Rescaling) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("scale", networks.channels(rescaling.scale))
        self.register_buffer("offset", networks.channels(rescaling.offset))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        pixel_values = pixels.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.offset
        return networks.embed_pixel_values(self.network, pixel_values)


class _TextTower(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return networks.embed_tokens(self.network, input_ids, attention_mask)
