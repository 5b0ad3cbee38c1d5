"""Finds out whether a GPU can be used, and if not, why."""

from __future__ import annotations

import os
from pathlib import Path

import torch

# Earlier versions free cuDNN's plans with the thread that made them, which is gone when CUDA graphs that use
# them are replayed (pytorch/pytorch#169153).
_MIN_TORCH = (2, 10)
_DEVICE_FILES = "nvidia[0-9]*"


def cuda_device(index: int, *, is_tried: bool = False) -> str:
    """Returns the device name of a GPU.

    Args:
        index: Of the GPUs that are visible to this process.
        is_tried: Whether to use it, which shows that it is free and that torch has kernels for it, but takes
            some of its memory until the process ends.

    Raises:
        ValueError: The GPU does not exist, or this process cannot use it; the message says why.
    """
    _check_build()
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # in torch
        count = torch.cuda.device_count()
        if index >= count:
            raise ValueError(f"device cuda:{index} does not exist; torch sees {count} GPUs")
        if is_tried:
            torch.ones(1, device=f"cuda:{index}").sum()  # runs kernels
            torch.cuda.synchronize(index)
    except (RuntimeError, AssertionError) as error:
        reason = f"{_first_sentences(error)}{_hint()}"
        raise ValueError(f"device cuda:{index} does not exist or cannot be used: {reason}") from error
    return f"cuda:{index}"


def _check_build() -> None:
    if torch.version.cuda is None and torch.version.hip is None:
        raise ValueError(f"torch {torch.__version__} is built without CUDA; install torch from PyPI")
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < _MIN_TORCH:
        raise ValueError(f"torch {torch.__version__} is too old for a GPU; install 2.10 or later")


def _first_sentences(error: BaseException) -> str:
    """Returns what torch says, without its advice for debugging on further lines."""
    return str(error).partition("\n")[0].partition(" Please ")[0].rstrip(". ")


def _hint() -> str:
    """Returns what often explains that CUDA finds no GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return f" (CUDA_VISIBLE_DEVICES is {visible!r})"
    for file in sorted(Path("/dev").glob(_DEVICE_FILES)):
        if not os.access(file, os.R_OK | os.W_OK):
            return f" (no permission to use {file})"
    return ""
