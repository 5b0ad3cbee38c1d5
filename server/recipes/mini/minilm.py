"""MiniLM as packaged: how similar two texts are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertModel

_BATCH = 128


class MiniLM:
    """Sentence embeddings: the mean of the last layer's tokens, normalized."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._model = BertModel.from_pretrained(folder, add_pooling_layer=False).to(device).eval()
        self._device = device
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_padding()
        self._tokenizer.enable_truncation(32)

    def embed(self, texts: Sequence[str], report: Callable[[int, int], None]) -> Tensor:
        """(texts, 384), normalized. `report` gets how many are done, and of how many."""
        result = torch.empty(len(texts), 384)
        # texts of like length together: less padding
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            encoded = self._tokenizer.encode_batch([texts[at] for at in batch])
            ids = torch.tensor([each.ids for each in encoded], device=self._device)
            mask = torch.tensor([each.attention_mask for each in encoded], device=self._device)
            with torch.inference_mode():
                hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask[:, :, None].float()
            mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
            result[batch] = torch.nn.functional.normalize(mean).cpu()
            report(start + len(batch), len(order))
        return result
