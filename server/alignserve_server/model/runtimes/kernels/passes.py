"""Passes over the maps between cuDNN's convolutions, in Triton: as few as the convolutions leave possible.

torch runs a convolution's bias, its activation and the shortcut as one kernel each, and each reads and writes
the whole map. Maps are (batch, channels, height, width) in channels-last memory, of any floating-point type;
arithmetic is in float32. The operators are torch's, so that a capture, a compiler or a trace sees them.

Sizes that need no alignment are not specialized: Triton would compile a kernel again for each multiple of 16.
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

_ELEMENTS = 2048  # of a map, per program
_CHUNK_TILES = 16  # that one program adds up
_UNITS, _UNIT_COLUMNS, _CHUNKS = 8, 128, 32
_GATE_ROWS, _GATE_COLUMNS = 64, 32


@triton.jit(do_not_specialize=["pixels", "height", "width", "padded_width", "top", "left"])
def _finish(
    hidden,
    output,
    scale,
    bias,
    gate,
    shortcut,
    pixels,
    channels,
    height,
    width,
    padded_width,
    top,
    left,
    activation: tl.constexpr,
    has_scale: tl.constexpr,
    has_gate: tl.constexpr,
    has_shortcut: tl.constexpr,
    is_padded: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    image, block = own_block(tl.cdiv(pixels, rows), channels, columns)
    column, is_channel = own_channels(channels, columns)
    row = rows_of(block, rows)
    inside = (row < pixels)[:, None] & is_channel[None, :]
    at = places(image, pixels, row, channels, column)
    source, is_filled = at, inside
    if is_padded:
        y, x = row // padded_width - top, row % padded_width - left
        is_filled = inside & ((y >= 0) & (y < height) & (x >= 0) & (x < width))[:, None]
        source = places(image, height * width, y * width + x, channels, column)
    value = tl.load(hidden + source, mask=is_filled, other=0).to(tl.float32)
    if has_scale:
        value *= per_channel(scale, column, is_channel)
    value = activated(value + per_channel(bias, column, is_channel), activation)
    if has_gate:
        value *= per_channel(gate + image * channels, column, is_channel)
    if has_shortcut:
        value += tl.load(shortcut + at, mask=inside, other=0).to(tl.float32)
    if is_padded:
        value = tl.where(is_filled, value, 0.0)
    tl.store(output + at, value.to(output.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["pixels", "chunks"])
def _partial_sums(
    hidden,
    bias,
    sums,
    pixels,
    channels,
    chunks,
    activation: tl.constexpr,
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
        inside = (row < pixels)[:, None] & is_channel[None, :]
        at = places(image, pixels, row, channels, column)
        value = activated(tl.load(hidden + at, mask=inside, other=0).to(tl.float32) + added, activation)
        total += tl.sum(tl.where(inside, value, 0.0), axis=0)
    tl.store(sums + (image * chunks + chunk) * channels + column, total, mask=is_channel)


@triton.jit(do_not_specialize=["pixels", "chunks"])
def _squeeze(
    sums,
    weight,
    bias,
    output,
    pixels,
    chunks,
    channels,
    units,
    activation: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    chunk_rows: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1) * rows + tl.arange(0, rows)
    is_unit = unit < units
    total = tl.zeros([rows], tl.float32)
    for start in range(0, channels, columns):
        column = start + tl.arange(0, columns)
        is_channel = column < channels
        mean = tl.zeros([columns], tl.float32)
        for first in range(0, chunks, chunk_rows):
            chunk = first + tl.arange(0, chunk_rows)
            at = (image * chunks + chunk)[:, None] * channels + column[None, :]
            inside = (chunk < chunks)[:, None] & is_channel[None, :]
            mean += tl.sum(tl.load(sums + at, mask=inside, other=0), axis=0)
        at = unit[:, None] * channels + column[None, :]
        inside = is_unit[:, None] & is_channel[None, :]
        weights = tl.load(weight + at, mask=inside, other=0).to(tl.float32)
        total += tl.sum(weights * (mean / pixels)[None, :], axis=1)
    total += tl.load(bias + unit, mask=is_unit, other=0).to(tl.float32)
    tl.store(output + image * units + unit, activated(total, activation), mask=is_unit)


@triton.jit
def _excite(
    squeezed,
    weight,
    bias,
    gate,
    channels,
    units,
    activation: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * rows + tl.arange(0, rows)
    is_channel = channel < channels
    total = tl.load(bias + channel, mask=is_channel, other=0).to(tl.float32)
    for start in range(0, units, columns):
        unit = start + tl.arange(0, columns)
        is_unit = unit < units
        at = channel[:, None] * units + unit[None, :]
        inside = is_channel[:, None] & is_unit[None, :]
        weights = tl.load(weight + at, mask=inside, other=0).to(tl.float32)
        total += tl.sum(
            weights * tl.load(squeezed + image * units + unit, mask=is_unit, other=0)[None, :], axis=1
        )
    tl.store(gate + image * channels + channel, activated(total, activation), mask=is_channel)


def _launch_finish(
    hidden: torch.Tensor,
    output: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor,
    gate: torch.Tensor | None,
    shortcut: torch.Tensor | None,
    activation: int,
    top: int,
    left: int,
) -> None:
    check_layout(hidden, output, shortcut)
    batch_size, channels, height, width = hidden.shape
    padded_height, padded_width = output.shape[2:]
    images, pixels = batch_size, padded_height * padded_width
    is_padded = output.shape != hidden.shape
    if gate is None and not is_padded:  # then images need not be told apart
        images, pixels = 1, batch_size * pixels
    rows, columns = _tile(channels)
    _finish[(images * triton.cdiv(pixels, rows) * triton.cdiv(channels, columns),)](
        hidden,
        output,
        bias if scale is None else scale,
        bias,
        bias if gate is None else gate,
        bias if shortcut is None else shortcut,
        pixels,
        channels,
        height,
        width,
        padded_width,
        top,
        left,
        activation,
        scale is not None,
        gate is not None,
        shortcut is not None,
        is_padded,
        rows,
        columns,
    )


def _run_finish(
    hidden: torch.Tensor,
    bias: torch.Tensor,
    gate: torch.Tensor | None,
    shortcut: torch.Tensor | None,
    activation: int,
) -> None:
    _launch_finish(hidden, hidden, None, bias, gate, shortcut, activation, 0, 0)


def _empty_padded(hidden: torch.Tensor, padding: list[int], dtype: torch.dtype) -> torch.Tensor:
    left, right, top, bottom = padding
    batch_size, channels, height, width = hidden.shape
    shape = batch_size, channels, height + top + bottom, width + left + right
    return torch.empty(shape, dtype=dtype, device=hidden.device, memory_format=torch.channels_last)


def _run_finish_padded(
    hidden: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor,
    activation: int,
    padding: list[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    output = _empty_padded(hidden, padding, dtype)
    _launch_finish(hidden, output, scale, bias, None, None, activation, padding[2], padding[0])
    return output


def _sums_like(hidden: torch.Tensor, *_: object) -> torch.Tensor:
    batch_size, channels, height, width = hidden.shape
    rows = _tile(channels)[0]
    chunks = -(-height * width // (rows * _CHUNK_TILES))
    return hidden.new_empty(batch_size, chunks, channels, dtype=torch.float32)


def _run_partial_sums(hidden: torch.Tensor, bias: torch.Tensor, activation: int) -> torch.Tensor:
    check_layout(hidden)
    sums = _sums_like(hidden)
    batch_size, channels, height, width = hidden.shape
    rows, columns = _tile(channels)
    chunks = sums.shape[1]
    _partial_sums[(batch_size * chunks * triton.cdiv(channels, columns),)](
        hidden, bias, sums, height * width, channels, chunks, activation, _CHUNK_TILES, rows, columns
    )
    return sums


def _squeezed_like(sums: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return sums.new_empty(len(sums), len(weight))


def _run_squeeze(
    sums: torch.Tensor, pixels: int, weight: torch.Tensor, bias: torch.Tensor, activation: int
) -> torch.Tensor:
    output = _squeezed_like(sums, weight)
    batch_size, chunks, channels = sums.shape
    units = len(weight)
    _squeeze[(batch_size, triton.cdiv(units, _UNITS))](
        sums,
        weight,
        bias,
        output,
        pixels,
        chunks,
        channels,
        units,
        activation,
        _UNITS,
        _UNIT_COLUMNS,
        min(_CHUNKS, triton.next_power_of_2(chunks)),
    )
    return output


def _gate_like(squeezed: torch.Tensor, weight: torch.Tensor, *_: object) -> torch.Tensor:
    return squeezed.new_empty(len(squeezed), len(weight))


def _run_excite(
    squeezed: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: int
) -> torch.Tensor:
    gate = _gate_like(squeezed, weight)
    channels = len(weight)
    _excite[(len(squeezed), triton.cdiv(channels, _GATE_ROWS))](
        squeezed, weight, bias, gate, channels, squeezed.shape[1], activation, _GATE_ROWS, _GATE_COLUMNS
    )
    return gate


def _tile(channels: int) -> Shape:
    """Returns the pixels and the channels of a program's tile."""
    columns = min(64, triton.next_power_of_2(channels))
    return _ELEMENTS // columns, columns


# Adds the bias, applies the activation, multiplies by a (batch, channels) gate, adds a shortcut: in place.
finish: Any = define(
    "finish(Tensor(a!) hidden, Tensor bias, Tensor? gate, Tensor? shortcut, int activation) -> ()",
    _run_finish,
    lambda *_: None,
)
# Also multiplies by a scale per channel first, and writes the result into a new map, padded with zeros
# (left, right, top, bottom), of another data type if need be.
finish_padded: Any = define(
    "finish_padded(Tensor hidden, Tensor? scale, Tensor bias, int activation, int[] padding,"
    " ScalarType dtype) -> Tensor",
    _run_finish_padded,
    lambda hidden, _scale, _bias, _activation, padding, dtype: _empty_padded(hidden, padding, dtype),
)
# Sums over the pixels of what `finish` would return, as (batch, chunks, channels): add up the chunks.
partial_sums: Any = define(
    "partial_sums(Tensor hidden, Tensor bias, int activation) -> Tensor", _run_partial_sums, _sums_like
)
# From the partial sums of a map with that many pixels to (batch, units), by a (units, channels) weight.
squeeze: Any = define(
    "squeeze(Tensor sums, int pixels, Tensor weight, Tensor bias, int activation) -> Tensor",
    _run_squeeze,
    lambda sums, _pixels, weight, *_: _squeezed_like(sums, weight),
)
# From (batch, units) to the (batch, channels) gate, by a (channels, units) weight.
excite: Any = define(
    "excite(Tensor squeezed, Tensor weight, Tensor bias, int activation) -> Tensor", _run_excite, _gate_like
)
