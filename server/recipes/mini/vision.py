"""EfficientNet-Lite0 in Hugging Face's `AlignVisionModel`, with a head of two layers on its pooled features.

ALIGN has no place for a head, so two more stages hold it:

* Stage 8 expands 320 channels to Lite0's 1,280 head features, and has a unit for each of the 320 as well:
  they know more than the classifier looks at. Its depthwise kernel of 13 x 13 ones covers the
  whole 7 x 7 map from every position, so each position then holds the mean: pooling inside the network. Its
  projection is the first affine map of the head.
* Stage 9 expands that to the hidden units, clipped by ReLU6, and its projection is the second affine map.

Squeeze-and-excitation, which Lite0 lacks, is neutral: weight 0, bias 20, and sigmoid(20) is 1 in float32.

Every stage is 8 channels wider than Lite0's. These carry colours to stage 8, as `colour.py` says; Lite0's own
channels do not see them. Between blocks they are multiplied by 8, so that their range is nearer to that of
Lite0's: a map in int8 has one scale.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import AlignVisionConfig

from server.recipes.mini import colour

IMAGE_SIZE = 224
LITE0_FEATURES = 1280
COLOURS = slice(LITE0_FEATURES, LITE0_FEATURES + colour.UNITS)
_LAST = 320  # channels of Lite0's last map
FEATURES = COLOURS.stop + _LAST
DIMENSION = 512
HIDDEN_RATIO = 3

_EPS = 1e-3
_POOL = 13  # 2 * 7 - 1: from any position of a 7 x 7 map, the kernel reaches all others
_MAP = IMAGE_SIZE // 32
_OPEN_GATE = 20.0
_LITE0_BLOCKS = 16
_STEM = 32
_WIDTHS = (_STEM, 16, 24, 40, 80, 112, 192, _LAST)  # channels of Lite0's maps
_KERNELS = (3, 3, 5, 3, 5, 5, 3)
_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_REPEATS = (1, 2, 2, 3, 3, 4, 1)
_EXPAND_RATIOS = (1, 6, 6, 6, 6, 6, 6)
_RISE = 8.0
_FIRST_BLOCKS = tuple(sum(_REPEATS[:stage]) for stage in range(len(_REPEATS)))


def vision_config() -> AlignVisionConfig:
    """The configuration: Lite0's stages, then the two of the head.

    ALIGN's stem has 32 channels times the width coefficient, which divides all other widths here.
    """
    wider = (_STEM + colour.CHANNELS) / _STEM
    widths = [round((width + colour.CHANNELS) / wider) for width in _WIDTHS]
    embedding = round(DIMENSION / wider)
    return AlignVisionConfig(
        image_size=IMAGE_SIZE,
        width_coefficient=wider,
        depth_coefficient=1.0,
        depth_divisor=8,
        kernel_sizes=[*_KERNELS, _POOL, 1],
        in_channels=[*widths, embedding],
        out_channels=[*widths[1:], embedding, embedding],
        depthwise_padding=[],
        strides=[*_STRIDES, 1, 1],
        num_block_repeats=[*_REPEATS, 1, 1],
        expand_ratios=[*_EXPAND_RATIOS, FEATURES // (_LAST + colour.CHANNELS), HIDDEN_RATIO],
        squeeze_expansion_ratio=0.001,
        hidden_act="relu6",
        hidden_dim=DIMENSION,
        pooling_type="mean",
        batch_norm_eps=_EPS,
        drop_connect_rate=0.0,
    )


class Lite0(nn.Module):
    """EfficientNet-Lite0 itself, from its state as packaged, and colours: pixels -> pooled features.

    Pixels are (batch, 3, 224, 224), scaled to (value - 127) / 128; features are (batch, FEATURES), each in
    0..6: Lite0's 1,280, those of colours, and those of the last map.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        convolutions = [("_conv_stem", "_bn0"), ("_conv_head", "_bn1")]
        for at in range(_LITE0_BLOCKS):
            block = f"_blocks.{at}"
            convolutions += [(f"{block}._expand_conv", f"{block}._bn0")] if at else []
            convolutions += [
                (f"{block}._depthwise_conv", f"{block}._bn1"),
                (f"{block}._project_conv", f"{block}._bn2"),
            ]
        self._folded = {conv: folded(state, conv, norm) for conv, norm in convolutions}
        self._last = last_units(state)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._folded["_conv_stem"][0].device

    def forward(self, pixels: Tensor) -> Tensor:
        """The pooled features."""
        colours = colour.features(pixels)
        x = self._convolved(pixels.contiguous(memory_format=torch.channels_last), "_conv_stem", stride=2)
        for at in range(_LITE0_BLOCKS):
            x = self._block(x, f"_blocks.{at}", at)
        scale, shift = (each[:, None, None] for each in self._last)
        last = (scale * x + shift).clamp(0, 6).mean(dim=(2, 3))
        return torch.cat([self._convolved(x, "_conv_head").mean(dim=(2, 3)), colours, last], dim=1)

    def _block(self, x: Tensor, name: str, at: int) -> Tensor:
        inputs = x
        if at > 0:
            x = self._convolved(x, f"{name}._expand_conv")
        x = self._convolved(x, f"{name}._depthwise_conv", stride=_stride(at))
        x = self._convolved(x, f"{name}._project_conv", clipped=False)
        return x if at in _FIRST_BLOCKS else x + inputs

    def _convolved(self, x: Tensor, name: str, stride: int = 1, clipped: bool = True) -> Tensor:
        weight, bias = self._folded[name]
        kernel = weight.shape[-1]
        if stride == 2:
            # TensorFlow's "same": an even input gets one pixel more at the right and the bottom
            before = (kernel - stride) // 2
            after = kernel - stride - before
            x = nn.functional.pad(x, (before, after, before, after))
        groups = x.shape[1] // weight.shape[1]
        padding = kernel // 2 if stride == 1 else 0
        x = nn.functional.conv2d(x, weight, bias, stride=stride, padding=padding, groups=groups)
        return x.clamp(0, 6) if clipped else x


class Head(nn.Module):
    """The head: hidden = relu6(inner(mid(features))), embedding = outer(hidden).

    (batch, FEATURES) -> (batch, DIMENSION), not normalized.
    """

    def __init__(self) -> None:
        super().__init__()
        hidden = DIMENSION * HIDDEN_RATIO
        self.mid = nn.Linear(FEATURES, DIMENSION)
        self.inner = nn.Linear(DIMENSION, hidden)
        self.outer = nn.Linear(hidden, DIMENSION)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.inner(self.mid(features)).clamp(0, 6)
        result: Tensor = self.outer(hidden)
        return result


def linear_head(weight: Tensor, bias: Tensor, spread: Tensor, seed: int) -> Head:
    """A head that computes `weight @ features + bias` while the result stays within 3 spreads.

    Unit i carries component i through the middle of ReLU6, where it is linear. The other units start from
    random directions and have no say until training gives them one. `weight` is (DIMENSION, FEATURES), `bias`
    and `spread` are (DIMENSION,); `spread` holds deviations.
    """
    more = DIMENSION * (HIDDEN_RATIO - 1)
    directions = torch.randn(more, DIMENSION, generator=torch.Generator().manual_seed(seed))
    directions = directions / directions.norm(dim=1, keepdim=True) / spread.mean()
    head = Head()
    head.load_state_dict(
        {
            "mid.weight": weight,
            "mid.bias": bias,
            "inner.weight": torch.cat([torch.diag(1 / spread), directions]),
            "inner.bias": torch.cat([torch.full((DIMENSION,), 3.0), torch.zeros(more)]),
            "outer.weight": torch.cat([torch.diag(spread), torch.zeros(DIMENSION, more)], dim=1),
            "outer.bias": -3.0 * spread,
        }
    )
    return head


def vision_state(lite0: Mapping[str, Tensor], head: Head) -> dict[str, Tensor]:
    """The state of `AlignVisionModel`, names without the prefix `vision_model.`."""
    state = {"embeddings.convolution.weight": _stem(lite0["_conv_stem.weight"])}
    state |= _norm(lite0, "_bn0", "embeddings.batchnorm", more=colour.CHANNELS)
    state["embeddings.batchnorm.bias"][-colour.CHANNELS :] = colour.local_bias()
    for at in range(_LITE0_BLOCKS):
        state |= _lite0_block(lite0, at)
    return state | _pooling_block(lite0, head) | _hidden_block(head)


def last_units(state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Scale and shift of the units of the last map: three deviations of a channel fill 0..6."""
    norm = f"_blocks.{_LITE0_BLOCKS - 1}._bn2"
    spread = state[f"{norm}.weight"].abs()
    scale = 1 / spread.clamp_min(0.05 * float(spread.max()))
    return scale, 3 - scale * state[f"{norm}.bias"]


def folded(state: Mapping[str, Tensor], conv: str, norm: str) -> tuple[Tensor, Tensor]:
    """A convolution and the batch norm after it as (weight, bias) of one convolution."""
    scale = state[f"{norm}.weight"] * (state[f"{norm}.running_var"] + _EPS).rsqrt()
    weight = (state[f"{conv}.weight"] * scale[:, None, None, None]).contiguous(
        memory_format=torch.channels_last
    )
    return weight, state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale


def _stride(block: int) -> int:
    return _STRIDES[_FIRST_BLOCKS.index(block)] if block in _FIRST_BLOCKS else 1


def _stem(weight: Tensor) -> Tensor:
    """Lite0's stem, and the channels of colour: means of 2 x 2 pixels."""
    mixed = torch.zeros(colour.CHANNELS, 3, 3, 3)
    mixed[:, :, :2, :2] = colour.local_weight()[:, :, None, None] / 4
    return torch.cat([weight, mixed])


def _lite0_block(lite0: Mapping[str, Tensor], at: int) -> dict[str, Tensor]:
    """A block of Lite0 with the channels of colour after its own.

    They go through the first of the expanded channels that are added. In a block that adds its input to its
    result, these stay 0.
    """
    source, block, more = f"_blocks.{at}", f"encoder.blocks.{at}", colour.CHANNELS
    carry = torch.eye(more) * (at in _FIRST_BLOCKS)
    depthwise = lite0[f"{source}._depthwise_conv.weight"]
    project = lite0[f"{source}._project_conv.weight"]
    added = more
    state = {}
    if at > 0:
        expand = lite0[f"{source}._expand_conv.weight"]
        added = more * (len(expand) // expand.shape[1])
        state[f"{block}.expansion.expand_conv.weight"] = _beside(expand, carry / _RISE, added, more)
        state |= _norm(lite0, f"{source}._bn0", f"{block}.expansion.expand_bn", more=added)
    inputs = (lite0[f"{source}._expand_conv.weight"].shape[1] if at else _STEM) + more
    kernel = colour.averaging(depthwise.shape[-1], _stride(at), is_last=at == _LITE0_BLOCKS - 1)
    kernel = kernel.repeat(added // more, 1, 1, 1)
    state |= {
        f"{block}.depthwise_conv.depthwise_conv.weight": torch.cat([depthwise, kernel]),
        f"{block}.projection.project_conv.weight": _beside(project, carry * _RISE, more, added),
    }
    state |= _norm(lite0, f"{source}._bn1", f"{block}.depthwise_conv.depthwise_norm", more=added)
    state |= _norm(lite0, f"{source}._bn2", f"{block}.projection.project_bn", more=more)
    return state | _open_gate(block, len(depthwise) + added, inputs)


def _beside(weight: Tensor, carry: Tensor, outputs: int, inputs: int) -> Tensor:
    """A 1 x 1 convolution with more outputs and inputs; the first of these are joined by `carry`."""
    wider = torch.zeros(weight.shape[0] + outputs, weight.shape[1] + inputs, 1, 1)
    wider[: weight.shape[0], : weight.shape[1]] = weight
    rows, columns = carry.shape
    wider[weight.shape[0] : weight.shape[0] + rows, weight.shape[1] : weight.shape[1] + columns, 0, 0] = carry
    return wider


def _pooling_block(lite0: Mapping[str, Tensor], head: Head) -> dict[str, Tensor]:
    block = f"encoder.blocks.{_LITE0_BLOCKS}"
    units, bias = colour.cell_units()
    scale, shift = last_units(lite0)
    wider = torch.zeros(FEATURES, _LAST + colour.CHANNELS, 1, 1)
    wider[:LITE0_FEATURES, :_LAST] = lite0["_conv_head.weight"]
    wider[COLOURS, _LAST:, 0, 0] = units / _RISE
    wider[COLOURS.stop :, :_LAST, 0, 0] = torch.diag(scale)
    norm = _norm(lite0, "_bn1", f"{block}.expansion.expand_bn", more=FEATURES - LITE0_FEATURES)
    norm[f"{block}.expansion.expand_bn.bias"][LITE0_FEATURES:] = torch.cat([bias, shift])
    state = {
        f"{block}.expansion.expand_conv.weight": wider,
        f"{block}.depthwise_conv.depthwise_conv.weight": torch.ones(FEATURES, 1, _POOL, _POOL),
    }
    state |= norm
    state |= _affine_norm(
        f"{block}.depthwise_conv.depthwise_norm", torch.full((FEATURES,), 1 / _MAP**2), torch.zeros(FEATURES)
    )
    return (
        state
        | _projection(block, head.mid.weight.detach(), head.mid.bias.detach())
        | _open_gate(block, FEATURES, wider.shape[1])
    )


def _hidden_block(head: Head) -> dict[str, Tensor]:
    block = f"encoder.blocks.{_LITE0_BLOCKS + 1}"
    hidden = len(head.inner.bias)
    state = {
        f"{block}.expansion.expand_conv.weight": head.inner.weight.detach()[:, :, None, None],
        f"{block}.depthwise_conv.depthwise_conv.weight": torch.ones(hidden, 1, 1, 1),
    }
    state |= _affine_norm(f"{block}.expansion.expand_bn", torch.ones(hidden), head.inner.bias.detach())
    state |= _affine_norm(f"{block}.depthwise_conv.depthwise_norm", torch.ones(hidden), torch.zeros(hidden))
    return (
        state
        | _projection(block, head.outer.weight.detach(), head.outer.bias.detach())
        | _open_gate(block, hidden, DIMENSION)
    )


def _projection(block: str, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    return {f"{block}.projection.project_conv.weight": weight[:, :, None, None]} | _affine_norm(
        f"{block}.projection.project_bn", torch.ones(len(bias)), bias
    )


def _affine_norm(name: str, scale: Tensor, shift: Tensor) -> dict[str, Tensor]:
    """A batch norm that computes `scale * x + shift`: its variance is 1 - epsilon."""
    return {
        f"{name}.weight": scale,
        f"{name}.bias": shift,
        f"{name}.running_mean": torch.zeros_like(shift),
        f"{name}.running_var": torch.full_like(shift, 1 - _EPS),
        f"{name}.num_batches_tracked": torch.tensor(0),
    }


def _norm(lite0: Mapping[str, Tensor], source: str, name: str, more: int) -> dict[str, Tensor]:
    """A batch norm of Lite0, with `more` channels after its own that it leaves as they are."""
    neutral = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1 - _EPS}
    state = {
        f"{name}.{part}": torch.cat([lite0[f"{source}.{part}"], torch.full((more,), value)])
        for part, value in neutral.items()
    }
    return state | {f"{name}.num_batches_tracked": torch.tensor(0)}


def _open_gate(block: str, channels: int, inputs: int) -> dict[str, Tensor]:
    squeezed = max(1, int(inputs * 0.001))
    gate = f"{block}.squeeze_excite"
    return {
        f"{gate}.reduce.weight": torch.zeros(squeezed, channels, 1, 1),
        f"{gate}.reduce.bias": torch.zeros(squeezed),
        f"{gate}.expand.weight": torch.zeros(channels, squeezed, 1, 1),
        f"{gate}.expand.bias": torch.full((channels,), _OPEN_GATE),
    }
