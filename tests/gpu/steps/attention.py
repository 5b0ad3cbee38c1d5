"""Attention with a padding mask by backend: the cost of a shape's first call, and of later ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from tests.gpu.check import Check
from tests.gpu.gpu import Gpu, gpu_of
from tests.gpu.results import Row

_BACKENDS = {
    "default": None,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_SHAPES = ((1, 16, 16), (32, 16, 16), (32, 64, 64), (32, 64, 1))  # texts, tokens, queries
_HEADS, _WIDTH = 12, 64  # align-base's


def run(check: Check) -> None:
    """Measures each backend, or records why it does not run."""
    gpu = gpu_of(check.is_pretended)
    for name in check.sized(tuple(_BACKENDS), ("default", "math")):
        for shape in check.sized(_SHAPES, _SHAPES[:1]):
            check.results.measured("Attention with a padding mask", _row(gpu, name, shape))


@torch.inference_mode()
def _row(gpu: Gpu, name: str, shape: tuple[int, int, int]) -> Row:
    size, length, queries = shape
    row: Row = {"backend": name, "texts": size, "tokens": length, "queries": queries}
    query = torch.randn(size, queries, _HEADS, _WIDTH, device=gpu.device, dtype=torch.float16).transpose(1, 2)
    key, value = torch.randn(size, length, 2, _HEADS, _WIDTH, device=gpu.device, dtype=torch.float16).permute(
        2, 0, 3, 1, 4
    )
    mask = torch.ones(size, 1, 1, length, dtype=torch.bool, device=gpu.device)
    mask[..., length // 2 :] = False

    def attend() -> torch.Tensor:
        return scaled_dot_product_attention(query, key, value, mask)

    backend = _BACKENDS[name]
    try:
        with nullcontext() if backend is None else sdpa_kernel([backend]):
            first_ms, out = _first(gpu, attend)
            steady_ms = gpu.milliseconds(gpu.graphed(attend))
    except RuntimeError as error:
        return {**row, "failed": str(error)[:80]}
    exact = scaled_dot_product_attention(_on_cpu(query), _on_cpu(key), _on_cpu(value), attn_mask=mask.cpu())
    largest = float((_on_cpu(out) - exact).abs().max())
    return {**row, "first ms": first_ms, "µs": 1e3 * steady_ms, "largest error": f"{largest:.1e}"}


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float().cpu()


def _first(gpu: Gpu, attend: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    gpu.synchronize()
    begin = time.perf_counter()
    out = attend()
    gpu.synchronize()
    return 1e3 * (time.perf_counter() - begin), out
