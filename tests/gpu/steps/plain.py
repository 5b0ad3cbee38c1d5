"""transformers' own model in float16: the alternative without this server."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from transformers.models.align.modeling_align import AlignModel

from tests.gpu.check import Check
from tests.gpu.gpu import Gpu, gpu_of
from tests.gpu.results import Row

_LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def run(check: Check) -> None:
    """Measures images in both layouts, and texts."""
    gpu = gpu_of(check.is_pretended)
    load: Any = AlignModel.from_pretrained
    model = load(check.checkpoint, dtype=torch.float16).to(gpu.device).eval()
    with torch.inference_mode():
        for row in _images(check, gpu, model):
            check.results.measured("transformers in float16: images", row)
        for row in _texts(check, gpu, model):
            check.results.measured("transformers in float16: texts", row)


def _images(check: Check, gpu: Gpu, model: Any) -> Iterator[Row]:
    side = model.config.vision_config.image_size
    for name, layout in _LAYOUTS.items():
        vision = model.vision_model.to(memory_format=layout)
        for size in check.sized((1, 8, 32, 128), (1,)):
            pixels = torch.randn(size, 3, side, side, device=gpu.device, dtype=model.dtype)
            embed = partial(vision, pixel_values=pixels.to(memory_format=layout))
            ms = gpu.milliseconds(embed, repeats=7)
            yield {"layout": name, "batch": size, "ms": ms, "images/s": 1e3 * size / ms}


def _texts(check: Check, gpu: Gpu, model: Any) -> Iterator[Row]:
    vocabulary = model.config.text_config.vocab_size
    for size, length in check.sized(((1, 16), (32, 16), (32, 64), (128, 16)), ((1, 8),)):
        ids = torch.randint(0, vocabulary, (size, length), device=gpu.device)
        embed = partial(model.text_model, input_ids=ids, attention_mask=torch.ones_like(ids))
        ms = gpu.milliseconds(embed, repeats=7)
        yield {"batch": size, "tokens": length, "ms": ms, "texts/s": 1e3 * size / ms}
