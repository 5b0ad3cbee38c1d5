"""Counts the memory traffic and the kernels of a forward of align-base's size, without a GPU.

A forward runs on meta tensors, which have shapes and no memory. Each operator counts as one kernel that reads
its inputs and writes its outputs once; a convolution with a bias as two, as torch runs it with cuDNN. Caches
may serve some of the reads, and weights are read more than once, so a GPU's own counters will differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from alignserve_server.model.runtimes import network as networks
from alignserve_server.model.runtimes.runtime import Rescaling
from alignserve_server.model.runtimes.towers import Towers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AlignConfig, AlignModel

IMAGE_SIDE = 289
_VISION = {"image_size": IMAGE_SIDE, "hidden_dim": 640}  # align-base's; the rest are transformers' defaults


@dataclass
class Traffic:
    """What a forward moves and launches."""

    bytes: int = 0
    kernels: int = 0


def meta_towers(dtype: torch.dtype = torch.float16) -> Towers:
    """Returns the towers of align-base without memory for their weights."""
    rescaling = Rescaling(np.full(3, 1 / 127.5, np.float32), np.full(3, -1, np.float32))
    with torch.device("meta"):
        model = AlignModel(AlignConfig(projection_dim=640, vision_config=_VISION)).eval()
        return Towers(networks.optimized(model), rescaling, torch.device("meta"), dtype)


@torch.no_grad()  # in inference mode, convolutions come under several names
def traffic_of(forward: Callable[[torch.Tensor], torch.Tensor], batch_size: int = 32) -> Traffic:
    """Counts one batch of images."""
    pixels = torch.empty(batch_size, IMAGE_SIDE, IMAGE_SIDE, 3, dtype=torch.uint8, device="meta")
    with _Counter() as counter:
        forward(pixels)
    return counter.traffic


class _Counter(TorchDispatchMode):  # torch has no type here
    def __init__(self) -> None:
        super().__init__()
        self.traffic = Traffic()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.is_view or name == "empty":
            return out
        read, written = _tensors((args, kwargs)), _tensors(out)
        if func.namespace == "alignserve":
            written = [*written, *_mutated(func, args)]
        self.traffic.bytes += sum(tensor.nbytes for tensor in (*read, *written))
        self.traffic.kernels += 1
        if name == "convolution" and args[2] is not None:  # the bias, in place
            self.traffic.bytes += 2 * written[0].nbytes
            self.traffic.kernels += 1
        return out


def _mutated(func: Any, args: tuple[Any, ...]) -> list[torch.Tensor]:
    changed = [argument.alias_info is not None for argument in func._schema.arguments]
    return [value for value, is_changed in zip(args, changed, strict=True) if is_changed]


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
