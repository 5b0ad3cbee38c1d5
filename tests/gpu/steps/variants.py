"""Variants of the image forward, each as a CUDA graph: how much would each gain?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from alignserve_server.model.runtimes.kernels.candidates import MAKERS
from alignserve_server.model.runtimes.runtime import KernelsName

from tests.gpu.check import Check
from tests.gpu.gpu import Gpu, gpu_of
from tests.gpu.results import Row
from tests.gpu.towers import load_towers, random_pixels

_BATCH = 32


@dataclass(frozen=True)
class _Variant:
    """A way to run the forward; the defaults are the server's."""

    dtype: torch.dtype = torch.float16
    layout: torch.memory_format = torch.channels_last
    batch: int = _BATCH
    kernels: KernelsName = "plain"
    is_benchmarked: bool = False  # cuDNN benchmarks its algorithms

    @property
    def row(self) -> dict[str, str | int | bool]:
        """The variant's columns in a table."""
        return {
            "dtype": str(self.dtype).removeprefix("torch."),
            "layout": str(self.layout).removeprefix("torch."),
            "batch": self.batch,
            "kernels": self.kernels,
            "cudnn.benchmark": self.is_benchmarked,
        }


_VARIANTS = (
    _Variant(),
    _Variant(kernels="epilogues"),
    _Variant(kernels="fused"),
    _Variant(is_benchmarked=True),
    _Variant(kernels="epilogues", is_benchmarked=True),
    _Variant(kernels="fused", batch=1),
    _Variant(batch=1),
    _Variant(is_benchmarked=True, batch=128),
    _Variant(layout=torch.contiguous_format),
    _Variant(dtype=torch.bfloat16),
    _Variant(dtype=torch.float32),
    _Variant(kernels="fused", dtype=torch.float32),
)
_PRETENDED = (
    _Variant(batch=1),
    _Variant(batch=1, dtype=torch.bfloat16),
    _Variant(batch=1, kernels="epilogues"),
)


def run(check: Check) -> None:
    """Measures each variant and adds its row at once: time may run out before the last."""
    gpu = gpu_of(check.is_pretended)
    for variant in check.sized(_VARIANTS, _PRETENDED):
        try:
            found = _measure(check, gpu, variant)
        except Exception as error:  # noqa: BLE001 — from compilers and libraries; the next may run
            found = {"failed": str(error)[:100]}
        check.results.measured("Variants of the image forward", {**variant.row, **found})


@torch.inference_mode()
def _measure(check: Check, gpu: Gpu, variant: _Variant) -> Row:
    towers = load_towers(check.checkpoint, gpu, variant.dtype, variant.layout)
    pixels = random_pixels(gpu, variant.batch)
    expected = towers.embed_pixels(pixels)
    if variant.kernels != "plain":
        towers.use_image_forward(MAKERS[variant.kernels](towers))
    with _benchmark(variant.is_benchmarked):
        cosine = torch.nn.functional.cosine_similarity(towers.embed_pixels(pixels), expected).min()
        ms = gpu.milliseconds(gpu.graphed(lambda: towers.embed_pixels(pixels)), repeats=7)
    return {"images/s": 1e3 * variant.batch / ms, "cosine": f"{float(cosine):.6f}"}


@contextmanager
def _benchmark(is_on: bool) -> Iterator[None]:
    torch.backends.cudnn.benchmark = is_on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False
