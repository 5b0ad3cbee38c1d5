"""Convolutions in Triton that read and write each map once, with all that stands around them in the network.

A pointwise convolution scales its input by the gate, and adds its bias and the shortcut; a depthwise one adds
up its output for squeeze and excitation on the way; the stem starts from bytes. Conventions as in `passes`.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
# Triton has no types, and its compiler types the arguments of kernels.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from alignserve_server.model.runtimes.kernels.activations import activated
from alignserve_server.model.runtimes.kernels.operators import Shape, check_layout, define
from alignserve_server.model.runtimes.kernels.tiles import (
    own_block,
    own_channels,
    per_channel,
    places,
    rows_of,
)

_PROGRAMS = 128  # about as many as a GPU has multiprocessors: fewer leave some idle
_LARGEST, _SMALLEST = 128, 32  # sides of a tile of a matrix product
_DEPTHWISE_ELEMENTS, _DEPTHWISE_TILES = 1024, 4


@triton.jit(do_not_specialize=["pixels"])
def _pointwise(
    hidden,
    weight,
    bias,
    gate,
    shortcut,
    output,
    pixels,
    channels,
    out_channels,
    activation: tl.constexpr,
    has_gate: tl.constexpr,
    has_shortcut: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    depth: tl.constexpr,
    is_interpreted: tl.constexpr,
):
    image, block = own_block(tl.cdiv(pixels, rows), out_channels, columns)
    column, is_channel = own_channels(out_channels, columns)
    row = rows_of(block, rows)
    is_pixel = row < pixels
    total = tl.zeros([rows, columns], tl.float32)
    for start in range(0, channels, depth):
        inner = start + tl.arange(0, depth)
        is_inner = inner < channels
        at = places(image, pixels, row, channels, inner)
        values = tl.load(hidden + at, mask=is_pixel[:, None] & is_inner[None, :], other=0)
        if has_gate:
            gates = tl.load(gate + image * channels + inner, mask=is_inner, other=0)
            values = (values.to(tl.float32) * gates[None, :]).to(hidden.dtype.element_ty)
        at = column[None, :] * channels + inner[:, None]
        weights = tl.load(weight + at, mask=is_inner[:, None] & is_channel[None, :], other=0)
        if is_interpreted:  # where tl.dot multiplies the bits of bfloat16 numbers
            values, weights = values.to(tl.float32), weights.to(tl.float32)
        total = tl.dot(values, weights, total, input_precision="ieee")
    total = activated(total + per_channel(bias, column, is_channel), activation)
    at = places(image, pixels, row, out_channels, column)
    inside = is_pixel[:, None] & is_channel[None, :]
    if has_shortcut:
        total += tl.load(shortcut + at, mask=inside, other=0).to(tl.float32)
    tl.store(output + at, total.to(output.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["height", "width", "out_pixels", "out_width", "chunks", "top", "left"])
def _depthwise(
    hidden,
    weight,
    bias,
    output,
    sums,
    height,
    width,
    out_pixels,
    out_width,
    channels,
    chunks,
    top,
    left,
    activation: tl.constexpr,
    side: tl.constexpr,
    stride: tl.constexpr,
    tiles: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    image, chunk = own_block(chunks, channels, columns)
    column, is_channel = own_channels(channels, columns)
    added = per_channel(bias, column, is_channel)
    total = tl.zeros([columns], tl.float32)
    for tile in range(tiles):
        row = rows_of(chunk * tiles + tile, rows)
        inside = (row < out_pixels)[:, None] & is_channel[None, :]
        value = tl.zeros([rows, columns], tl.float32) + added
        for down in range(side):
            y = row // out_width * stride - top + down
            for right in range(side):
                x = row % out_width * stride - left + right
                is_map = (y >= 0) & (y < height) & (x >= 0) & (x < width)
                at = places(image, height * width, y * width + x, channels, column)
                pixel = tl.load(hidden + at, mask=inside & is_map[:, None], other=0).to(tl.float32)
                tap = weight + (down * side + right) * channels
                value += pixel * per_channel(tap, column, is_channel)
        value = activated(value, activation)
        at = places(image, out_pixels, row, channels, column)
        tl.store(output + at, value.to(output.dtype.element_ty), mask=inside)
        total += tl.sum(tl.where(inside, value, 0.0), axis=0)
    tl.store(sums + (image * chunks + chunk) * channels + column, total, mask=is_channel)


@triton.jit(do_not_specialize=["height", "width", "out_pixels", "out_width", "top", "left"])
def _stem(
    pixels,
    scale,
    offset,
    weight,
    bias,
    output,
    height,
    width,
    out_pixels,
    out_width,
    channels,
    top,
    left,
    activation: tl.constexpr,
    side: tl.constexpr,
    stride: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    image, block = own_block(tl.cdiv(out_pixels, rows), channels, columns)
    column, is_channel = own_channels(channels, columns)
    row = rows_of(block, rows)
    is_pixel = row < out_pixels
    value = tl.zeros([rows, columns], tl.float32) + per_channel(bias, column, is_channel)
    for down in range(side):
        y = row // out_width * stride - top + down
        for right in range(side):
            x = row % out_width * stride - left + right
            is_map = is_pixel & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            for color in range(3):
                at = (image * height * width + y * width + x) * 3 + color
                pixel = tl.load(pixels + at, mask=is_map, other=0).to(tl.float32)
                pixel = tl.where(is_map, pixel * tl.load(scale + color) + tl.load(offset + color), 0.0)
                tap = weight + ((down * side + right) * 3 + color) * channels
                value += pixel[:, None] * per_channel(tap, column, is_channel)
    at = places(image, out_pixels, row, channels, column)
    value = activated(value, activation).to(output.dtype.element_ty)
    tl.store(output + at, value, mask=is_pixel[:, None] & is_channel[None, :])


def _pointwise_like(hidden: torch.Tensor, weight: torch.Tensor, *_: object) -> torch.Tensor:
    return _empty(hidden.shape[0], len(weight), hidden.shape[2], hidden.shape[3], like=hidden)


def _run_pointwise(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    gate: torch.Tensor | None,
    shortcut: torch.Tensor | None,
    activation: int,
) -> torch.Tensor:
    check_layout(hidden, shortcut)
    output = _pointwise_like(hidden, weight)
    batch_size, channels, height, width = hidden.shape
    images, pixels, out_channels = batch_size, height * width, len(weight)
    if gate is None:  # then images need not be told apart
        images, pixels = 1, batch_size * pixels
    rows, columns = matrix_tile(images, pixels, out_channels)
    _pointwise[(images * triton.cdiv(pixels, rows) * triton.cdiv(out_channels, columns),)](
        hidden,
        weight,
        bias,
        bias if gate is None else gate,
        bias if shortcut is None else shortcut,
        output,
        pixels,
        channels,
        out_channels,
        activation,
        gate is not None,
        shortcut is not None,
        rows,
        columns,
        32 if channels <= 64 or hidden.dtype is torch.float32 else 64,
        hidden.device.type == "cpu",
        num_warps=8 if rows * columns == _LARGEST**2 else 4,
    )
    return output


def _depthwise_like(
    hidden: torch.Tensor, side: int, stride: int, padding: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    batch_size, channels, height, width = hidden.shape
    output = _empty(batch_size, channels, *_out_shape(height, width, side, stride, padding), like=hidden)
    rows = _depthwise_tile(channels)[0]
    chunks = -(-output.shape[2] * output.shape[3] // (rows * _DEPTHWISE_TILES))
    return output, hidden.new_empty(batch_size, chunks, channels, dtype=torch.float32)


def _run_depthwise(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    side: int,
    stride: int,
    padding: list[int],
    activation: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    check_layout(hidden)
    output, sums = _depthwise_like(hidden, side, stride, padding)
    batch_size, channels, height, width = hidden.shape
    rows, columns = _depthwise_tile(channels)
    chunks = sums.shape[1]
    _depthwise[(batch_size * chunks * triton.cdiv(channels, columns),)](
        hidden,
        weight,
        bias,
        output,
        sums,
        height,
        width,
        output.shape[2] * output.shape[3],
        output.shape[3],
        channels,
        chunks,
        padding[2],
        padding[0],
        activation,
        side,
        stride,
        _DEPTHWISE_TILES,
        rows,
        columns,
    )
    return output, sums


def _stem_like(
    pixels: torch.Tensor, bias: torch.Tensor, side: int, stride: int, padding: list[int]
) -> torch.Tensor:
    batch_size, height, width, _ = pixels.shape
    return _empty(batch_size, len(bias), *_out_shape(height, width, side, stride, padding), like=bias)


def _run_stem(
    pixels: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    side: int,
    stride: int,
    padding: list[int],
    activation: int,
) -> torch.Tensor:
    output = _stem_like(pixels, bias, side, stride, padding)
    batch_size, height, width, _ = pixels.shape
    out_pixels, channels = output.shape[2] * output.shape[3], len(bias)
    rows, columns = _depthwise_tile(channels)
    _stem[(batch_size * triton.cdiv(out_pixels, rows) * triton.cdiv(channels, columns),)](
        pixels,
        scale,
        offset,
        weight,
        bias,
        output,
        height,
        width,
        out_pixels,
        output.shape[3],
        channels,
        padding[2],
        padding[0],
        activation,
        side,
        stride,
        rows,
        columns,
    )
    return output


def matrix_tile(images: int, pixels: int, out_channels: int) -> Shape:
    """Returns the pixels and output channels of a tile: the largest that still occupies the GPU."""

    def programs() -> int:
        return int(images * triton.cdiv(pixels, rows) * triton.cdiv(out_channels, columns))

    rows = max(_SMALLEST, min(_LARGEST, triton.next_power_of_2(pixels)))
    columns = max(_SMALLEST, min(_LARGEST, triton.next_power_of_2(out_channels)))
    while programs() < _PROGRAMS and max(rows, columns) > _SMALLEST:
        if rows > columns:
            rows //= 2
        else:
            columns //= 2
    return rows, columns


def _depthwise_tile(channels: int) -> Shape:
    columns = min(64, triton.next_power_of_2(channels))
    return _DEPTHWISE_ELEMENTS // columns, columns


def _out_shape(height: int, width: int, side: int, stride: int, padding: list[int]) -> Shape:
    left, right, top, bottom = padding
    return (height + top + bottom - side) // stride + 1, (width + left + right - side) // stride + 1


def _empty(*shape: int, like: torch.Tensor) -> torch.Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


# From a (batch, channels, height, width) map, multiplied by a (batch, channels) gate, by an
# (out_channels, channels) weight; then bias, activation and shortcut.
pointwise: Any = define(
    "pointwise(Tensor hidden, Tensor weight, Tensor bias, Tensor? gate, Tensor? shortcut, int activation)"
    " -> Tensor",
    _run_pointwise,
    _pointwise_like,
)
# By a (side * side, channels) weight, with padding (left, right, top, bottom). Also returns partial sums.
depthwise: Any = define(
    "depthwise(Tensor hidden, Tensor weight, Tensor bias, int side, int stride, int[] padding,"
    " int activation) -> (Tensor, Tensor)",
    _run_depthwise,
    lambda hidden, _weight, _bias, side, stride, padding, _: _depthwise_like(hidden, side, stride, padding),
)
# From (batch, height, width, 3) bytes, rescaled, by a (side * side * 3, channels) weight.
stem: Any = define(
    "stem(Tensor pixels, Tensor scale, Tensor offset, Tensor weight, Tensor bias, int side, int stride,"
    " int[] padding, int activation) -> Tensor",
    _run_stem,
    lambda pixels, _scale, _offset, _weight, bias, side, stride, padding, _: _stem_like(
        pixels, bias, side, stride, padding
    ),
)
