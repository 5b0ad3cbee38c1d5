"""The activations that Triton's kernels can apply."""

# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
# Triton has no types, and its compiler types the arguments of kernels.

from __future__ import annotations

import triton
import triton.language as tl
from torch import nn
from transformers.activations import GELUActivation

from alignserve_server.model.runtimes.kernels.unavailable import Unavailable

NONE = 0
_CODES = {nn.SiLU: 1, nn.Sigmoid: 2, nn.ReLU: 3, nn.ReLU6: 4, GELUActivation: 5}


def activation_code(activation: nn.Module | None) -> int:
    """Returns the number by which the kernels know an activation. Raises Unavailable if they do not."""
    if activation is None:
        return NONE
    try:
        return _CODES[type(activation)]
    except KeyError:
        raise Unavailable(f"the activation {type(activation).__name__} is not supported") from None


@triton.jit
def activated(value, activation: tl.constexpr):
    """Applies an activation to float32 values."""
    if activation == 1:
        value = value / (1.0 + tl.exp(-value))
    elif activation == 2:
        value = 1.0 / (1.0 + tl.exp(-value))
    elif activation == 3:
        value = tl.maximum(value, 0.0)
    elif activation == 4:
        value = tl.minimum(tl.maximum(value, 0.0), 6.0)
    elif activation == 5:
        value = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    return value
