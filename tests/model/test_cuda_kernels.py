"""Triton's kernels compute the same as torch's operators: on a GPU, or by Triton's interpreter on a CPU."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from alignserve_server.model.runtimes import network as networks
from alignserve_server.model.runtimes.runtime import Rescaling
from alignserve_server.model.runtimes.towers import Towers
from torch import nn
from torch.nn import functional
from transformers.activations import GELUActivation

from tests.model.tiny import tiny_model

pytest.importorskip("triton", reason="needs triton, which comes with torch for CUDA on Linux")

from alignserve_server.model.runtimes.kernels import convolutions, passes
from alignserve_server.model.runtimes.kernels.activations import NONE, activation_code
from alignserve_server.model.runtimes.kernels.epilogues import EpilogueForward
from alignserve_server.model.runtimes.kernels.fused import FusedForward
from alignserve_server.model.runtimes.kernels.unavailable import Unavailable

pytestmark = [
    pytest.mark.model,
    # of exp in a sigmoid: infinity is right, but numpy, by which the interpreter computes, warns
    pytest.mark.filterwarnings("ignore:overflow encountered in exp"),
]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ACTIVATIONS = [None, nn.SiLU(), nn.Sigmoid(), nn.ReLU(), nn.ReLU6(), GELUActivation()]
# (batch, channels, height, width): one pixel, odd sizes, and more channels than a tile has
SHAPES = [(1, 5, 1, 1), (3, 24, 7, 5), (2, 70, 9, 3)]
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 2e-1}
SILU = activation_code(nn.SiLU())


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Returns the same numbers for the same shape; a map is channels-last."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    return numbers.to(memory_format=torch.channels_last) if len(shape) == 4 else numbers


def activated(hidden: torch.Tensor, activation: nn.Module | None) -> torch.Tensor:
    return hidden if activation is None else activation(hidden)


def per_channel(values: torch.Tensor) -> torch.Tensor:
    """Returns (channels,) or (batch, channels) values in a shape that fits a map."""
    return values.float()[..., None, None]


def assert_close(actual: torch.Tensor, expected: torch.Tensor, bound: float = 1e-5) -> None:
    torch.testing.assert_close(actual.float(), expected.float(), rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
def test_a_finished_map_has_bias_activation_gate_and_shortcut(dtype):
    """This holds for every activation and any subset of the rest, in place, in each data type."""
    for shape, activation in zip(itertools.cycle(SHAPES), ACTIVATIONS, strict=False):
        for has_gate, has_shortcut in itertools.product([False, True], repeat=2):
            hidden, bias = random(*shape, dtype=dtype), random(shape[1], dtype=dtype)
            gate = random(*shape[:2]) if has_gate else None
            shortcut = random(*shape, dtype=dtype).roll(1, 0) if has_shortcut else None
            expected = activated(hidden.float() + per_channel(bias), activation)
            expected = expected if gate is None else expected * per_channel(gate)
            expected = expected if shortcut is None else expected + shortcut.float()

            passes.finish(hidden, bias, gate, shortcut, activation_code(activation))

            assert_close(hidden, expected, BOUNDS[dtype])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_padding_is_zero(shape):
    """The activation of a bias is not: padding comes after both."""
    hidden, bias, scale = random(*shape), random(shape[1]), random(shape[1]) + 2
    padding = [0, 1, 2, 3]
    finished = functional.silu(hidden * per_channel(scale) + per_channel(bias))

    padded = passes.finish_padded(hidden, scale, bias, SILU, padding, torch.float32)

    assert_close(padded, functional.pad(finished, padding))
    assert padded.is_contiguous(memory_format=torch.channels_last)


def test_bytes_are_rescaled():
    """Images come as bytes, and leave in the network's data type."""
    pixels = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8).to(DEVICE)
    images, scale, offset = pixels.permute(0, 3, 1, 2), random(3), random(3)

    rescaled = passes.finish_padded(images, scale, offset, NONE, [0, 1, 0, 1], torch.float16)

    assert rescaled.dtype is torch.float16
    expected = images.float() * per_channel(scale) + per_channel(offset)
    assert_close(rescaled, functional.pad(expected, [0, 1, 0, 1]), 2e-2)


@pytest.mark.parametrize(("shape", "units"), [(shape, 3 + 9 * n) for n, shape in enumerate(SHAPES)], ids=str)
def test_squeeze_and_excitation_equal_torchs(shape, units, monkeypatch):
    """The means come from several chunks of pixels, and units and channels need not fill their tiles."""
    monkeypatch.setattr(passes, "_ELEMENTS", 256)
    monkeypatch.setattr(passes, "_CHUNK_TILES", 2)
    hidden, bias = random(*shape), random(shape[1])
    first, first_bias = random(units, shape[1]), random(units)
    second, second_bias = random(shape[1], units), random(shape[1])
    mean = functional.silu(hidden + per_channel(bias)).mean((2, 3))
    expected = torch.sigmoid(functional.silu(mean @ first.T + first_bias) @ second.T + second_bias)

    sums = passes.partial_sums(hidden, bias, SILU)
    squeezed = passes.squeeze(sums, shape[2] * shape[3], first, first_bias, SILU)
    gate = passes.excite(squeezed, second, second_bias, activation_code(nn.Sigmoid()))

    assert sums.shape[1] == -(-shape[2] * shape[3] // (512 // min(64, 1 << (shape[1] - 1).bit_length())))
    assert_close(gate, expected)


@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
def test_a_pointwise_convolution_equals_torchs(dtype):
    """With and without a gate for its input and a shortcut for its output."""
    for shape, has_gate, has_shortcut in zip(SHAPES, [False, True, True], [True, True, False], strict=True):
        hidden, weight, bias = random(*shape, dtype=dtype), random(36, shape[1], dtype=dtype) / 8, random(36)
        gate = random(*shape[:2]) if has_gate else None
        shortcut = random(shape[0], 36, *shape[2:], dtype=dtype) if has_shortcut else None
        scaled = hidden.float() if gate is None else (hidden.float() * per_channel(gate)).to(dtype).float()
        expected = functional.silu(functional.conv2d(scaled, weight.float()[..., None, None], bias))
        expected = expected if shortcut is None else expected + shortcut.float()

        actual = convolutions.pointwise(hidden, weight, bias, gate, shortcut, SILU)

        assert actual.dtype is dtype
        assert_close(actual, expected, BOUNDS[dtype])


@pytest.mark.parametrize(
    ("side", "stride", "padding"),
    [(3, 1, [1, 1, 1, 1]), (5, 2, [1, 2, 1, 2]), (3, 2, [0, 1, 0, 1]), (13, 1, [6, 6, 6, 6])],
    ids=["same", "five", "stride", "wider than the map"],
)
def test_a_depthwise_convolution_equals_torchs(side, stride, padding, monkeypatch):
    """Also with padding on one side only; its partial sums are those of its output."""
    monkeypatch.setattr(convolutions, "_DEPTHWISE_ELEMENTS", 256)
    monkeypatch.setattr(convolutions, "_DEPTHWISE_TILES", 2)
    hidden, weight, bias = random(2, 40, 7, 5), random(40, 1, side, side), random(40)
    expected = functional.conv2d(functional.pad(hidden, padding), weight, bias, stride, groups=40)
    taps = weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()

    actual, sums = convolutions.depthwise(hidden, taps, bias, side, stride, padding, SILU)

    assert_close(actual, functional.silu(expected))
    assert_close(sums.sum(1), functional.silu(expected).sum((2, 3)), 1e-4)


def test_the_stem_equals_torchs():
    """It rescales bytes; padding is zero after that."""
    pixels = torch.randint(0, 256, (2, 9, 7, 3), dtype=torch.uint8).to(DEVICE)
    scale, offset, weight, bias = random(3) / 100, random(3), random(20, 3, 3, 3), random(20)
    images = pixels.permute(0, 3, 1, 2) * per_channel(scale) + per_channel(offset)
    expected = functional.silu(functional.conv2d(functional.pad(images, [0, 1, 0, 1]), weight, bias, 2))
    taps = weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()

    actual = convolutions.stem(pixels, scale, offset, taps, bias, 3, 2, [0, 1, 0, 1], SILU)

    assert_close(actual, expected, 1e-4)


def test_a_map_in_another_layout_is_refused():
    """A kernel would read it in the wrong order."""
    hidden = torch.zeros(2, 8, 3, 3, device=DEVICE)

    with pytest.raises(RuntimeError, match="not channels-last"):
        passes.finish(hidden, random(8), None, None, NONE)


@pytest.mark.parametrize(
    ("images", "pixels", "channels", "expected"),
    [
        (1, 32 * 145 * 145, 192, (128, 128)),
        (32, 361, 224, (128, 128)),
        (1, 100, 3840, (64, 32)),
        (1, 100, 640, (32, 32)),
        (1, 1, 16, (32, 32)),
    ],
)
def test_small_products_get_small_tiles(images, pixels, channels, expected):
    """So they still spread over the multiprocessors."""
    assert convolutions.matrix_tile(images, pixels, channels) == expected


@pytest.mark.parametrize("make", [EpilogueForward, FusedForward])
@pytest.mark.usefixtures("large_tiles")
def test_a_towers_embeddings_stay_the_same(make: Any):
    """In float32 they are within 1e-6 of torch's, as unit vectors."""
    towers = towers_of()
    pixels = torch.randint(0, 256, (2, 40, 40, 3), dtype=torch.uint8).to(DEVICE)
    expected = functional.normalize(towers.embed_pixels(pixels))

    actual = functional.normalize(make(towers)(pixels))

    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    assert_close(functional.normalize(towers.embed_pixels(pixels)), expected, 1e-7)


@pytest.mark.parametrize("make", [EpilogueForward, FusedForward])
def test_an_unknown_activation_is_refused(make: Any):
    """Such a checkpoint is served by torch's own kernels."""
    with pytest.raises(Unavailable, match="Tanh"):
        make(towers_of(hidden_act="tanh"))


def towers_of(**vision: Any) -> Towers:
    rescaling = Rescaling(np.full(3, 1 / 127.5, np.float32), np.full(3, -1, np.float32))
    return Towers(networks.optimized(tiny_model(vision=vision)), rescaling, DEVICE, torch.float32)
