"""Writes the checkpoint in Hugging Face's format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AlignConfig, AlignModel, BertTokenizerFast

from server.recipes.mini.text import MAX_TOKENS, TextTower, text_config
from server.recipes.mini.vision import DIMENSION, IMAGE_SIZE, Head, vision_config, vision_state

_PREPROCESSOR = {
    "do_resize": True,
    "size": {"height": 256, "width": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "rescale_offset": False,
    "do_normalize": True,
    "image_mean": [127 / 255] * 3,
    "image_std": [128 / 255] * 3,
    "include_top": False,
    "image_processor_type": "EfficientNetImageProcessor",
    "processor_class": "AlignProcessor",
}


def export(
    lite0: Mapping[str, Tensor],
    head: Head,
    tower: TextTower,
    pieces: Sequence[str],
    temperature: float,
    folder: Path,
) -> None:
    """Writes weights in float16, configuration, tokenizer and preprocessor."""
    config = AlignConfig(
        text_config=text_config(len(pieces)).to_dict(),
        vision_config=vision_config().to_dict(),
        projection_dim=DIMENSION,
        temperature_init_value=temperature,
    )
    model = AlignModel(config)
    state = {f"vision_model.{name}": tensor for name, tensor in vision_state(lite0, head).items()}
    state |= {f"text_model.{name}": tensor for name, tensor in tower.model.state_dict().items()}
    state |= {f"text_projection.{name}": tensor for name, tensor in tower.projection.state_dict().items()}
    state["temperature"] = torch.tensor(temperature)
    model.load_state_dict(state)
    model.half().save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), "utf-8")
    tokenizer = BertTokenizerFast(
        vocab=str(folder / "vocab.txt"), do_lower_case=True, model_max_length=MAX_TOKENS
    )
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSOR, indent=1), "utf-8")
