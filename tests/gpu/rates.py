"""Measures batches of each size: as a graph, without one, from host to host, and the lower bound."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tests.gpu.check import Check
from tests.gpu.earlier import IMAGE_RATE, IMAGES, TEXT_RATE, TEXTS
from tests.gpu.gpu import Gpu
from tests.gpu.loading import Graph, Loaded
from tests.gpu.results import Row
from tests.gpu.roofline import IMAGE_BYTES, IMAGE_FLOP, TOKEN_FLOP, copy_rate

_EAGER_SIZES = (1, 8, 32)
_MEASURED_SIZES = (1, 2, 3, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # of up to 44 graphs


def measured_sizes(sizes: Sequence[int]) -> list[int]:
    """Returns the batch sizes that are worth the time to measure."""
    return [size for size in sizes if size in _MEASURED_SIZES]


@torch.inference_mode()
def measure_images(check: Check, gpu: Gpu, loaded: Loaded) -> None:
    """Adds a row for each measured batch size of images."""
    copied = copy_rate(check)
    sizes = measured_sizes(loaded.batch_sizes)
    for graph in loaded.images:
        if graph.shape[0] in sizes:
            check.results.measured(IMAGES, _image_row(gpu, loaded, graph, copied))


@torch.inference_mode()
def measure_texts(check: Check, gpu: Gpu, loaded: Loaded) -> None:
    """Adds a row for each measured batch size of texts, by length."""
    for graph in loaded.texts:
        size, length = graph.shape
        if not measured_sizes([size]):
            continue
        ms = _replay_ms(gpu, graph, repeats=9)
        flops = size * length * TOKEN_FLOP / ms / 1e9
        check.results.measured(
            TEXTS,
            {"batch": size, "tokens": length, "graph ms": ms, TEXT_RATE: 1e3 * size / ms, "TFLOP/s": flops},
        )


def _image_row(gpu: Gpu, loaded: Loaded, graph: Graph, copied: float) -> Row:
    (size,) = graph.shape
    replay_ms = _replay_ms(gpu, graph, repeats=15)
    floors_ms = {name: 1e3 * size * moved / copied for name, moved in IMAGE_BYTES.items()}
    eager_ms = gpu.milliseconds(graph.forward, repeats=5) if size in _EAGER_SIZES else None
    height, width = loaded.encoder.preprocess_image.output_size
    batch = list(np.random.default_rng(size).integers(0, 256, (size, height, width, 3), np.uint8))
    host_ms = gpu.host_milliseconds(lambda: loaded.encoder.encode_images(batch))
    return {
        "batch": size,
        "graph ms": replay_ms,
        "without graph ms": eager_ms,
        "host to host ms": host_ms,
        IMAGE_RATE: 1e3 * size / replay_ms,
        "of roofline": floors_ms[loaded.kernels] / replay_ms,
        "TB/s": size * IMAGE_BYTES[loaded.kernels] / replay_ms / 1e9,
        "TFLOP/s": size * IMAGE_FLOP / replay_ms / 1e9,
        **{f"floor ms, {name}": ms for name, ms in floors_ms.items()},
    }


def _replay_ms(gpu: Gpu, graph: Graph, repeats: int) -> float:
    return gpu.milliseconds(graph.replay, repeats)
