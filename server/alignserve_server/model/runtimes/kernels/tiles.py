"""The part of a map that a program of a kernel computes: a tile of pixels and channels.

A program's number counts the tiles of channels first, then the blocks of an image's pixels, then the images.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
# Triton has no types, and its compiler types the arguments of kernels.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def own_channels(channels, columns: tl.constexpr):
    """Returns this program's channels, and which of them exist."""
    column = tl.program_id(0) % tl.cdiv(channels, columns) * columns + tl.arange(0, columns)
    return column, column < channels


@triton.jit
def own_block(blocks, channels, columns: tl.constexpr):
    """Returns this program's image, as int64, and its block of that image."""
    block = tl.program_id(0) // tl.cdiv(channels, columns)
    return (block // blocks).to(tl.int64), block % blocks


@triton.jit
def rows_of(block, rows: tl.constexpr):
    """Returns the pixels of a block, some of which may not exist."""
    return block * rows + tl.arange(0, rows)


@triton.jit
def places(image, pixels, row, channels, column):
    """Returns where the elements of a tile are in an (images, pixels, channels) map."""
    return (image * pixels + row)[:, None] * channels + column[None, :]


@triton.jit
def per_channel(values, column, is_channel):
    """Loads float32 values of channels, in the shape of a tile's row."""
    return tl.load(values + column, mask=is_channel, other=0).to(tl.float32)[None, :]
