"""Lite0 and the head in `AlignVisionModel`."""

from __future__ import annotations

import pytest
import torch
from transformers import AlignVisionModel

from server.recipes.mini import vision
from server.recipes.mini.space import clipped_normal


def _lite0() -> dict[str, torch.Tensor]:
    """Random weights by Lite0's names, with batch norms that keep values in range."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        name: tensor.shape for name, tensor in AlignVisionModel(vision.vision_config()).state_dict().items()
    }
    state: dict[str, torch.Tensor] = {}

    def conv(name: str, shape: torch.Size) -> None:
        fan_in = shape[1] * shape[2] * shape[3]
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"] = 0.5 + torch.rand(channels, generator=generator)
        state[f"{name}.bias"] = 0.5 * torch.randn(channels, generator=generator)
        state[f"{name}.running_mean"] = 0.1 * torch.randn(channels, generator=generator)
        state[f"{name}.running_var"] = 0.5 + torch.rand(channels, generator=generator)
        state[f"{name}.num_batches_tracked"] = torch.tensor(0)

    conv("_conv_stem", shapes["embeddings.convolution.weight"])
    norm("_bn0", 32)
    for at in range(16):
        name, block = f"_blocks.{at}", f"encoder.blocks.{at}"
        layers = [("depthwise_conv.depthwise_conv", "_depthwise_conv", "_bn1")]
        layers += [("projection.project_conv", "_project_conv", "_bn2")]
        layers += [("expansion.expand_conv", "_expand_conv", "_bn0")] if at else []
        for hosted, convolution, normalization in layers:
            shape = shapes[f"{block}.{hosted}.weight"]
            conv(f"{name}.{convolution}", shape)
            norm(f"{name}.{normalization}", shape[0])
    conv("_conv_head", torch.Size((vision.FEATURES, 320, 1, 1)))
    norm("_bn1", vision.FEATURES)
    return state


def test_the_hosted_tower_computes_the_head_of_the_pooled_features() -> None:
    """Pooling inside the network equals pooling after it."""
    lite0 = _lite0()
    head = vision.linear_head(
        torch.randn(vision.DIMENSION, vision.FEATURES) * 0.02,
        torch.randn(vision.DIMENSION) * 0.1,
        torch.full((vision.DIMENSION,), 1.0),
        seed=0,
    )
    torch.nn.init.normal_(head.outer.weight, std=0.02)
    hosted = AlignVisionModel(vision.vision_config()).eval()
    hosted.load_state_dict(vision.vision_state(lite0, head))
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))

    with torch.inference_mode():
        expected = head(vision.Lite0(lite0)(pixels))
        found = hosted(pixels).pooler_output

    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_new_head_is_linear_within_three_spreads() -> None:
    """ReLU6 is linear in the middle; at the edge a component stops growing."""
    weight = torch.eye(vision.DIMENSION, vision.FEATURES)
    spread = torch.full((vision.DIMENSION,), 0.5)
    head = vision.linear_head(weight, torch.zeros(vision.DIMENSION), spread, seed=0)
    features = torch.zeros(1, vision.FEATURES)
    features[0, :3] = torch.tensor([1.0, -1.4, 2.0])

    embedding = head(features)[0]

    assert embedding[:4].tolist() == pytest.approx([1.0, -1.4, 1.5, 0.0], abs=1e-5)


def test_the_mean_of_a_clipped_normal_variable() -> None:
    """Far inside the range nothing is clipped; around 0 half of it is."""
    mean, deviation = clipped_normal(torch.tensor([3.0, 0.0]), torch.tensor([0.1, 1.0]))

    assert mean.tolist() == pytest.approx([3.0, 0.3989], abs=1e-3)
    assert deviation.tolist() == pytest.approx([0.1, 0.5838], abs=1e-3)
