"""Writes a checkpoint's text tower as BERT in ONNX, for servers that embed only texts with BERT.

python -m tests.load.peers.text_tower CHECKPOINT FOLDER, in an environment with the package onnx
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AlignModel, AutoTokenizer, BertConfig


class TextTower(torch.nn.Module):
    """BERT and the projection of its first token, which those servers take as the embedding."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._bert, self._projection = model.text_model, model.text_projection

    def forward(self, input_ids: torch.Tensor, mask: torch.Tensor, type_ids: torch.Tensor) -> torch.Tensor:
        """Returns the embeddings as hidden states of one token: (texts, 1, dimension)."""
        hidden = self._bert(input_ids=input_ids, attention_mask=mask, token_type_ids=type_ids)[0]
        return self._projection(hidden[:, :1])


def main(checkpoint: str, folder: str) -> None:
    """Writes configuration, tokenizer and `model.onnx`."""
    model: Any = AlignModel.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    fields = {**model.config.text_config.to_dict(), "model_type": "bert", "architectures": ["BertModel"]}
    BertConfig.from_dict(fields).save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    torch.onnx.export(
        TextTower(model),
        tuple(torch.ones(2, 8, dtype=torch.int64) for _ in inputs),
        str(Path(folder, "model.onnx")),
        input_names=inputs,
        output_names=["last_hidden_state"],
        dynamic_axes={
            **{name: {0: "texts", 1: "tokens"} for name in inputs},
            "last_hidden_state": {0: "texts"},
        },
        dynamo=False,  # servers fuse the operators that this exporter writes
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
