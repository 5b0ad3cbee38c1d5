"""Defines operators of torch that run Triton's kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

Shape: TypeAlias = tuple[int, int]

_library: Any = torch.library.Library("alignserve", "FRAGMENT")  # type: ignore[no-untyped-call]  # in torch


def define(schema: str, run: Callable[..., Any], shape_of: Callable[..., Any]) -> Any:
    """Defines `torch.ops.alignserve.<name>`, and returns it.

    Args:
        schema: In torch's language. Arguments marked (a!) are changed in place.
        run: Launches the kernel. Tensors on a CPU need Triton's interpreter.
        shape_of: Takes the same arguments, returns an empty result.
    """
    _library.define(schema)
    name = schema.partition("(")[0]
    for key in ("CPU", "CUDA"):
        _library.impl(name, run, key)
    _library.impl(name, shape_of, "Meta")
    return getattr(torch.ops.alignserve, name).default


def check_layout(*maps: torch.Tensor | None) -> None:
    """Raises RuntimeError for a map that is not channels-last, which a kernel would read wrongly."""
    for hidden in maps:
        if hidden is not None and not hidden.is_contiguous(memory_format=torch.channels_last):
            raise RuntimeError(f"{tuple(hidden.shape)} with strides {hidden.stride()} is not channels-last")
