"""A checkpoint on plain transformers, as the peers run it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AlignModel, AlignProcessor

MAX_BATCH_SIZES = {"image": 8, "text": 32}  # images are fastest in small batches on a CPU
BATCH_WAIT_SECONDS = 0.002


class PlainProcessor:
    """AlignProcessor, used as its documentation shows."""

    def __init__(self, folder: str) -> None:
        self._processor: Any = AlignProcessor.from_pretrained(folder, backend="pil")

    def pixel_values(self, contents: Sequence[bytes]) -> np.ndarray:
        """Decodes and resizes images: (images, 3, height, width)."""
        images = [Image.open(io.BytesIO(content)).convert("RGB") for content in contents]
        return self._processor(images=images, return_tensors="np")["pixel_values"]

    def tokens(self, texts: Sequence[str], padding: Any = True) -> dict[str, torch.Tensor]:
        """Tokenizes texts, padded to the longest, or to the model's length with `max_length`."""
        return self._processor(text=list(texts), padding=padding, truncation=True, return_tensors="pt")


class PlainModel:
    """AlignModel and AlignProcessor, used as their documentation shows."""

    def __init__(self, folder: str) -> None:
        self._model: Any = AlignModel.from_pretrained(folder, dtype=torch.float32).eval()
        self._processor = PlainProcessor(folder)

    def embed(self, modality: str, bodies: Sequence[bytes]) -> list[bytes]:
        """Embeds image files or UTF-8 texts; returns packed float32 bytes."""
        if modality == "image":
            rows = self.embed_images(bodies)
        else:
            rows = self.embed_texts([body.decode() for body in bodies])
        return [row.astype(np.float32).tobytes() for row in rows]

    @torch.inference_mode()
    def embed_pixel_values(self, pixel_values: np.ndarray) -> np.ndarray:
        """Embeds decoded images; returns normalized rows."""
        output = self._model.get_image_features(pixel_values=torch.from_numpy(pixel_values))
        return _normalized(output.pooler_output)

    def embed_images(self, contents: Sequence[bytes]) -> np.ndarray:
        """Embeds image files; returns normalized rows."""
        return self.embed_pixel_values(self._processor.pixel_values(contents))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str], padding: Any = True) -> np.ndarray:
        """Embeds texts; returns normalized rows. See `PlainProcessor.tokens` for `padding`."""
        tokens = self._processor.tokens(texts, padding)
        return _normalized(self._model.get_text_features(**tokens).pooler_output)


def _normalized(embeddings: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(embeddings.flatten(1), dim=1).numpy()
