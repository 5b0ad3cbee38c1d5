"""An ALIGN checkpoint of a few kilobytes, for tests that depend only on files."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from transformers import AlignConfig, AlignModel, AlignProcessor, BertTokenizer
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_WORDS = [
    "cat",
    "dog",
    "Cat",
    "école",
    "École",
    "ecole",
    "猫犬",
    "猫",
    "a",
    "the",
    "of",
    "##s",
    ".",
    ",",
    "!",
]
_CHARACTERS = [*string.ascii_letters, *string.digits, "é"]
VOCABULARY = list(
    dict.fromkeys([*SPECIAL_TOKENS, *_WORDS, *_CHARACTERS, *(f"##{one}" for one in _CHARACTERS)])
)
SPARE_ROWS = 8  # of the word embeddings, for added tokens

TEXT_CONFIG = {
    "vocab_size": len(VOCABULARY) + SPARE_ROWS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
}
VISION_CONFIG = {
    "hidden_dim": 24,
    "image_size": 40,
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "kernel_sizes": [3, 5],
    "in_channels": [32, 16],
    "out_channels": [16, 24],
    "strides": [1, 2],
    "num_block_repeats": [1, 2],
    "expand_ratios": [1, 2],
    "initializer_range": 0.5,
}


def tiny_model(
    *, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **top: Any
) -> AlignModel:
    """Returns a random model, the same for the same arguments."""
    torch.manual_seed(0)
    config = AlignConfig(
        projection_dim=24,
        temperature_init_value=0.1,
        text_config={**TEXT_CONFIG, **(text or {})},
        vision_config={**VISION_CONFIG, **(vision or {})},
        **top,
    )
    model = AlignModel(config).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # else every image is alike
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
    return model


def write_tiny_checkpoint(folder: Path, model: AlignModel | None = None) -> Path:
    """Writes the model like `save_pretrained`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    images = EfficientNetImageProcessorPil(
        size={"height": 40, "width": 40}, do_center_crop=False, include_top=False
    )
    AlignProcessor(images, BertTokenizer.from_pretrained(folder, model_max_length=64)).save_pretrained(folder)
    (model or tiny_model()).save_pretrained(folder)
    return folder


def edit(path: Path, **changes: object) -> None:
    """Sets keys of a JSON file, which need not exist; None removes one."""
    content = json.loads(path.read_text()) if path.exists() else {}
    content = {key: value for key, value in {**content, **changes}.items() if value is not None}
    path.write_text(json.dumps(content))
