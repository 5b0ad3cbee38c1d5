"""Runs the towers on a CPU with oneDNN, with prepacked weights and fused activations and shortcuts.

The operators are those to which `torch.compile` lowers frozen models; called directly, they need no compiler.
torch's own convolutions and linear layers repack the weights for every batch, and for one image on one thread
they bypass oneDNN entirely and run at half the speed.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import nn
from transformers.activations import GELUActivation

from alignserve_server.model.runtimes.towers import Step

_Fusion: TypeAlias = tuple[str, list[float], str]  # oneDNN's name of an activation, its values, its algorithm

_NO_ACTIVATION: _Fusion = ("none", [], "")
_ACTIVATIONS: dict[type, _Fusion] = {
    nn.SiLU: ("swish", [], ""),
    nn.ReLU: ("relu", [], ""),
    nn.ReLU6: ("hardtanh", [0.0, 6.0], ""),
    nn.Sigmoid: ("sigmoid", [], ""),
    GELUActivation: ("gelu", [], "none"),
}

_operators: Any = torch.ops.mkldnn  # created at run time, so without types


def is_available(dtype: torch.dtype) -> bool:
    """Returns whether this build of torch supports a data type on this CPU."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # in torch
        return False
    return dtype is torch.float32 or (
        dtype is torch.bfloat16 and bool(_operators._is_mkldnn_bf16_supported())
    )


@torch.no_grad()
def fuse(towers: nn.Module) -> None:
    """Replaces every step with its fused form, in place."""
    for module in list(towers.modules()):
        for name, step in module.named_children():
            if isinstance(step, Step):
                setattr(module, name, _fused(step))


def _fused(step: Step) -> nn.Module:
    if isinstance(step.weighted, nn.Conv2d) and _is_lopsided(step.weighted):
        return step
    make = _Convolution if isinstance(step.weighted, nn.Conv2d) else _Linear
    if step.activation is None:
        return make(step.weighted, _NO_ACTIVATION)
    if type(step.activation) in _ACTIVATIONS:
        return make(step.weighted, _ACTIVATIONS[type(step.activation)])
    return Step(make(step.weighted, _NO_ACTIVATION), step.activation)


class _Convolution(nn.Module):
    weight: torch.Tensor

    def __init__(self, convolution: Any, activation: _Fusion) -> None:
        super().__init__()
        self._geometry = (
            _padding(convolution),
            convolution.stride,
            convolution.dilation,
            convolution.groups,
        )
        self.register_buffer(
            "weight", _operators._reorder_convolution_weight(convolution.weight, *self._geometry)
        )
        self.bias = convolution.bias
        self._activation = activation
        self._operator = _operators._convolution_pointwise.default
        self._operator_with_shortcut = _operators._convolution_pointwise.binary

    def forward(self, hidden: torch.Tensor, shortcut: torch.Tensor | None = None) -> Any:
        if shortcut is None:
            return self._operator(hidden, self.weight, self.bias, *self._geometry, *self._activation)
        return self._operator_with_shortcut(
            hidden, shortcut, self.weight, self.bias, *self._geometry, "add", None, None, [], None
        )


class _Linear(nn.Module):
    weight: torch.Tensor

    def __init__(self, linear: Any, activation: _Fusion) -> None:
        super().__init__()
        self.register_buffer("weight", _operators._reorder_linear_weight(linear.weight))
        self.bias = linear.bias
        self._activation = activation
        self._operator = _operators._linear_pointwise.default
        self._operator_with_shortcut = _operators._linear_pointwise.binary

    def forward(self, hidden: torch.Tensor, shortcut: torch.Tensor | None = None) -> Any:
        if shortcut is None:
            return self._operator(hidden, self.weight, self.bias, *self._activation)
        return self._operator_with_shortcut(hidden, shortcut, self.weight, self.bias, "add")


def _is_lopsided(convolution: nn.Conv2d) -> bool:
    """Returns whether the padding is asymmetric, which oneDNN's operator does not support."""
    return convolution.padding == "same" and any(size % 2 == 0 for size in convolution.kernel_size)


def _padding(convolution: nn.Conv2d) -> tuple[int, ...]:
    """Returns the padding as numbers. "same" is symmetric, since the kernel size is odd."""
    if convolution.padding == "same":
        return tuple(size // 2 for size in convolution.kernel_size)
    if convolution.padding == "valid":
        return (0, 0)
    return convolution.padding  # type: ignore[return-value]  # the only strings are these two
