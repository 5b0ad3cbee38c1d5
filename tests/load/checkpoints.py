"""Writes a checkpoint as large and fast as kakaobrain/align-base, with random weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from alignserve_server.model.checkpoint import resolve_checkpoint
from torch import nn
from transformers import AlignConfig, AlignModel, AlignProcessor, BertTokenizer
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil


def write_full_size(folder: Path) -> Path:
    """Writes the checkpoint, 690 MB, unless it exists. The vocabulary is the embedded one, padded."""
    if (folder / "model.safetensors").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = (resolve_checkpoint().folder / "vocab.txt").read_text().splitlines()
    vocabulary += [f"[unused{number}]" for number in range(30522 - len(vocabulary))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    image_processor = EfficientNetImageProcessorPil(
        size={"height": 346, "width": 346},
        resample=2,
        do_center_crop=True,
        crop_size={"height": 289, "width": 289},
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
        include_top=False,
    )
    tokenizer = BertTokenizer.from_pretrained(folder, model_max_length=64)
    AlignProcessor(image_processor, tokenizer).save_pretrained(folder)
    _random_model().save_pretrained(folder)
    return folder


@torch.no_grad()
def _random_model() -> AlignModel:
    torch.manual_seed(0)
    config = AlignConfig(
        projection_dim=640,
        temperature_init_value=0.07,
        vision_config={"image_size": 289, "hidden_dim": 640},
    )
    model = AlignModel(config)
    for module in model.vision_model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    block: Any
    for block in model.vision_model.encoder.blocks:
        norm = block.projection.project_bn
        if not block.expand or norm is None:
            continue
        norm.weight.fill_(0.3)  # of branches parallel to a shortcut: the signal neither vanishes nor explodes
    model.train()
    model.vision_model(torch.rand(4, 3, 289, 289) * torch.linspace(0.2, 2, 4).view(4, 1, 1, 1) - 1)
    return model.eval()


if __name__ == "__main__":
    print(write_full_size(Path(sys.argv[1])))
