"""The two towers without a runtime, for experiments with their forwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from alignserve_server.model.runtimes import network as networks
from alignserve_server.model.runtimes.runtime import Rescaling
from alignserve_server.model.runtimes.towers import Towers

from tests.gpu.gpu import Gpu

IMAGE_SIDE = 289  # align-base's


@torch.inference_mode()
def load_towers(
    folder: Path, gpu: Gpu, dtype: torch.dtype, layout: torch.memory_format = torch.channels_last
) -> Towers:
    """Loads a checkpoint's towers onto the GPU, with pixels rescaled to [-1, 1]."""
    network = networks.optimized(networks.load_network(folder)).to(memory_format=layout)
    rescaling = Rescaling(np.full(3, 1 / 127.5, np.float32), np.full(3, -1, np.float32))
    return Towers(network, rescaling, gpu.device, dtype)


def random_pixels(gpu: Gpu, size: int) -> torch.Tensor:
    """Returns (size, 289, 289, 3) pixels on the GPU."""
    return torch.randint(0, 256, (size, IMAGE_SIDE, IMAGE_SIDE, 3), dtype=torch.uint8, device=gpu.device)
