"""What both runtimes for CPUs do to the image tower so that it is nearly as exact in bfloat16 as in float32.

bfloat16 has 8 significant bits. Rounding every number to it costs the embedded checkpoint's images up to 7
degrees, nearly all of it in three places:

- Weights of depthwise convolutions. A kernel has only a few, whose errors add up over a smooth picture, since
  every pixel repeats them. `balanced` rounds them so that the errors of a kernel cancel.
- Biases, since a channel's error is the same at every pixel. The runtimes add them in float32 where they can.
- The stem and the first blocks, whose errors all later blocks see. They stay in float32.

Texts lose a degree at most, so the text tower is rounded as it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FLOAT32_BLOCKS = 2  # the stem and this many first blocks stay in float32

_STEP = np.uint32(0x10000)  # one step of bfloat16, in the bits of a float32


def balanced(kernels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounds to bfloat16 so that the sum of each row hardly changes.

    Each weight is rounded to the nearest number; then those whose rounding was the closest call are rounded
    the other way, while that brings the sum of the row closer to its value before.

    Args:
        kernels: (channels, weights), finite.

    Returns:
        The same shape in float32, with values that bfloat16 represents exactly.
    """
    exact = np.ascontiguousarray(kernels, np.float32)
    rounded = _nearest(exact)
    other = _other_neighbour(exact, rounded)
    errors = rounded.astype(np.float64) - exact
    steps = other.astype(np.float64) - rounded
    excess = errors.sum(axis=1)
    costs = (errors + steps) ** 2 - errors**2  # of rounding a weight the other way
    rows = np.arange(len(exact))
    for _ in range(exact.shape[1]):
        gains = excess[:, None] ** 2 - (excess[:, None] + steps) ** 2 - costs
        best = gains.argmax(axis=1)
        changed = np.flatnonzero(gains[rows, best] > 0)
        if not len(changed):
            break
        at = changed, best[changed]
        rounded[at] = other[at]
        excess[changed] += steps[at]
        costs[at] = np.inf  # each weight changes once
    return rounded


def _nearest(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the nearest bfloat16, and of two the even one, as float32."""
    bits = values.view(np.uint32)
    half = np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    rounded: NDArray[np.float32] = (bits + half & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded


def _other_neighbour(exact: NDArray[np.float32], nearest: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the bfloat16 on the other side; of a number that bfloat16 has, the number itself."""
    bits = nearest.view(np.uint32)
    away_from_zero = np.abs(exact) > np.abs(nearest)
    moved = np.where(away_from_zero, bits + _STEP, bits - _STEP).view(np.float32)
    other: NDArray[np.float32] = np.where(exact == nearest, nearest, moved)
    return other
