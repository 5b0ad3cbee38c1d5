"""The image tower through torch.compile, in our own CUDA graph: does it repay its startup time?"""

from __future__ import annotations

import time

import torch
from alignserve_server.model.runtimes.kernels.compiled import CompiledForward

from tests.gpu.check import Check
from tests.gpu.gpu import gpu_of
from tests.gpu.towers import load_towers, random_pixels


@torch.inference_mode()
def run(check: Check) -> None:
    """Compiles it for one batch size; without a GPU it is only traced."""
    gpu = gpu_of(check.is_pretended)
    towers = load_towers(check.checkpoint, gpu, torch.float16)
    size = check.sized(32, 1)
    pixels = random_pixels(gpu, size)
    expected = towers.embed_pixels(pixels)
    begin = time.perf_counter()
    backend = check.sized("inductor", "eager")
    run_compiled = CompiledForward(towers, backend=backend)
    output = run_compiled(pixels)
    gpu.synchronize()
    seconds = time.perf_counter() - begin
    ms = gpu.milliseconds(gpu.graphed(lambda: run_compiled(pixels)), repeats=9)
    cosine = float(torch.nn.functional.cosine_similarity(output, expected).min())
    check.results.measured(
        "torch.compile",
        {"batch": size, "compile s": seconds, "images/s": 1e3 * size / ms, "cosine": f"{cosine:.6f}"},
    )
