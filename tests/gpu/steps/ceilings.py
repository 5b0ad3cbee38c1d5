"""The card's limits: copies, matrix products, launches in a graph, transfers, waiting for an event."""

from __future__ import annotations

import platform
import shutil
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from tests.gpu.check import Check, CheckFailed
from tests.gpu.gpu import Gpu, gpu_of
from tests.gpu.results import Row

TITLE, COPY = "Ceilings", "copy TB/s"  # read by `roofline`
_NODES = 1000


def run(check: Check) -> None:
    """Measures the ceilings that the other figures are compared with."""
    check.results.proved("Software", _software())
    if not check.is_pretended and not torch.cuda.is_available():
        raise CheckFailed(f"torch {torch.__version__} sees no GPU")
    gpu = gpu_of(check.is_pretended)
    check.run_all(
        lambda: check.results.measured(TITLE, _arithmetic(check, gpu)),
        lambda: check.results.measured(TITLE, _transfers(check, gpu)),
    )


def _software() -> Row:
    packages = ("triton", "transformers", "grpcio", "numpy", "pillow")
    headers = Path(sysconfig.get_config_h_filename()).with_name("Python.h")
    return {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        **{package: _version(package) for package in packages},
        "C compiler": shutil.which("gcc") or shutil.which("clang") or "none",
        "Python.h": headers.exists(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _arithmetic(check: Check, gpu: Gpu) -> dict[str, float]:
    source = torch.empty(check.sized(1 << 30, 1 << 10), dtype=torch.uint8, device=gpu.device)
    target = torch.empty_like(source)
    copy_ms = gpu.milliseconds(lambda: target.copy_(source))
    side = check.sized(8192, 16)
    # random: products of zeros take less power, and run faster than real ones
    left, right = (torch.randn(side, side, device=gpu.device, dtype=torch.float16) for _ in range(2))
    product_ms = gpu.milliseconds(lambda: left @ right)
    small = torch.zeros(1024, device=gpu.device)

    def launches() -> None:
        for _ in range(check.sized(_NODES, 10)):
            small.add_(1)

    return {
        COPY: 2 * source.nbytes / copy_ms / 1e9,
        "float16 TFLOP/s": 2 * side**3 / product_ms / 1e9,
        "µs a node of a graph": 1e3 * gpu.milliseconds(gpu.graphed(launches)) / _NODES,
    }


def _transfers(check: Check, gpu: Gpu) -> dict[str, float]:
    pixels = np.random.default_rng(0).integers(0, 256, (check.sized(32, 1), 289, 289, 3), np.uint8)
    pageable = torch.from_numpy(pixels)
    pinned = gpu.pinned(pageable)
    to_device_ms = gpu.milliseconds(lambda: pinned.to(gpu.device, non_blocking=True))
    small = torch.zeros(1024, device=gpu.device)
    return {
        "host to device GB/s": pixels.nbytes / to_device_ms / 1e6,
        "pinning 32 images ms": gpu.host_milliseconds(lambda: gpu.pinned(pageable)),
        "wait, blocking µs": gpu.wait_microseconds(lambda: small.add_(1), is_blocking=True),
        "wait, spinning µs": gpu.wait_microseconds(lambda: small.add_(1), is_blocking=False),
    }
