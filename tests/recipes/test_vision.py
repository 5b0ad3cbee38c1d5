"""Lite0 and the head in `AlignVisionModel`."""

from __future__ import annotations

import pytest
import torch
from transformers import AlignVisionModel

from server.recipes.mini import vision
from server.recipes.mini.space import clipped_normal

_BLOCKS = (
    (32, 16, 3), (16, 24, 3), (24, 24, 3), (24, 40, 5), (40, 40, 5), (40, 80, 3), (80, 80, 3), (80, 80, 3),
    (80, 112, 5), (112, 112, 5), (112, 112, 5), (112, 192, 5), (192, 192, 5), (192, 192, 5), (192, 192, 5),
    (192, 320, 3),
)  # fmt: skip


def _lite0() -> dict[str, torch.Tensor]:
    """Random weights by Lite0's names, with batch norms that keep values in range."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def layer(convolution: str, norm: str, *shape: int) -> None:
        fan_in = shape[1] * shape[2] * shape[3]
        channels = shape[0]
        state[f"{convolution}.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        state[f"{norm}.weight"] = 0.5 + torch.rand(channels, generator=generator)
        state[f"{norm}.bias"] = 0.5 * torch.randn(channels, generator=generator)
        state[f"{norm}.running_mean"] = 0.1 * torch.randn(channels, generator=generator)
        state[f"{norm}.running_var"] = 0.5 + torch.rand(channels, generator=generator)

    layer("_conv_stem", "_bn0", 32, 3, 3, 3)
    for at, (inputs, outputs, kernel) in enumerate(_BLOCKS):
        name = f"_blocks.{at}"
        expanded = 6 * inputs if at else inputs
        if at:
            layer(f"{name}._expand_conv", f"{name}._bn0", expanded, inputs, 1, 1)
        layer(f"{name}._depthwise_conv", f"{name}._bn1", expanded, 1, kernel, kernel)
        layer(f"{name}._project_conv", f"{name}._bn2", outputs, expanded, 1, 1)
    layer("_conv_head", "_bn1", vision.LITE0_FEATURES, 320, 1, 1)
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
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1)) * 2 - 1
    pixels[0, :, 32:128, 64:192] = torch.tensor([1.0, 0.1, -0.9])[:, None, None]  # something orange

    with torch.inference_mode():
        features = vision.Lite0(lite0)(pixels)
        expected = head(features)
        found = hosted(pixels).pooler_output

    assert expected.std() > 0.05
    assert features[:, vision.LITE0_FEATURES :].std() > 0.05
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
