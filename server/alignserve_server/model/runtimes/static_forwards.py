"""Forwards at fixed shapes on fixed memory, as CUDA graphs need them: one for each bucket of sizes.

A batch goes to the smallest bucket that holds it, and what the rest of the bucket becomes is cut off. How a
forward is captured is for the caller to say, so nothing here needs a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch

from alignserve_server.model.runtimes.towers import Towers
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)

Forward: TypeAlias = Callable[[], torch.Tensor]
Capture: TypeAlias = Callable[[Forward], Forward]

_SHORTEST_TEXT = 8  # tokens; a GPU computes shorter ones no faster


@dataclass(frozen=True, slots=True)
class Extent:
    """The largest inputs."""

    batch_size: int
    image_size: tuple[int, int]  # height, width
    text_tokens: int


def buckets(limit: int, smallest: int = 1) -> list[int]:
    """Returns the powers of two from `smallest` (one itself) up to below the limit, and the limit."""
    sizes = []
    while smallest < limit:
        sizes.append(smallest)
        smallest *= 2
    return [*sizes, limit]


def bucket_for(size: int, sizes: Iterable[int]) -> int | None:
    """Returns the smallest bucket that holds a size, or None if none does."""
    return min((bucket for bucket in sizes if bucket >= size), default=None)


class StaticForwards:
    """The forwards of all buckets. They share their inputs, so one runs at a time."""

    def __init__(self, towers: Towers, extent: Extent, device: torch.device) -> None:
        """Allocates the inputs; there are no forwards until `capture`."""
        self._towers = towers
        self._lengths = buckets(extent.text_tokens, _SHORTEST_TEXT)
        tokens = extent.batch_size, extent.text_tokens
        self._pixels = torch.zeros(extent.batch_size, *extent.image_size, 3, dtype=torch.uint8, device=device)
        self._input_ids = torch.zeros(tokens, dtype=torch.int64, device=device)
        self._attention_mask = torch.ones(tokens, dtype=torch.int64, device=device)
        self._images: dict[int, Forward] = {}
        self._texts: dict[int, dict[int, Forward]] = {}  # batch size → length → forward

    @property
    def batch_sizes(self) -> list[int]:
        """The batch sizes that have been captured."""
        return sorted(self._images)

    def capture(self, capture: Capture) -> None:
        """Captures the forwards of every bucket that fits the device, or none if it cannot be done at all."""
        try:
            for batch_size in reversed(buckets(len(self._pixels))):  # largest first: others reuse its memory
                self._add(batch_size, capture)
        except RuntimeError as error:
            _log.warning("cuda_graphs_disabled", reason=str(error))
            self._images.clear()
            self._texts.clear()

    def _add(self, batch_size: int, capture: Capture) -> None:
        embed_pixels, embed_tokens = self._towers.embed_pixels, self._towers.embed_tokens
        try:
            images = capture(partial(embed_pixels, self._pixels[:batch_size]))
            texts = {
                length: capture(
                    partial(
                        embed_tokens,
                        self._input_ids[:batch_size, :length],
                        self._attention_mask[:batch_size, :length],
                    )
                )
                for length in self._lengths
            }
        except torch.OutOfMemoryError:
            _log.warning("cuda_graph_too_large", batch_size=batch_size)
        else:
            self._images[batch_size], self._texts[batch_size] = images, texts

    def embed_pixels(self, pixels: torch.Tensor) -> torch.Tensor | None:
        """Returns embeddings, which the next call overwrites, or None if no bucket is large enough."""
        count = len(pixels)
        bucket = bucket_for(count, self._images)
        if bucket is None:
            return None
        self._pixels[:count].copy_(pixels)
        return self._images[bucket]()[:count]

    def embed_tokens(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor | None:
        """Does the same with texts."""
        count, length = input_ids.shape
        bucket, padded_length = bucket_for(count, self._texts), bucket_for(length, self._lengths)
        if bucket is None or padded_length is None:
            return None
        # Rows beyond the batch keep texts of an earlier one: rows do not see each other, and a text of
        # padding alone would make numbers that are not finite.
        self._input_ids[:count, :length].copy_(input_ids)
        self._attention_mask[:count, :length].copy_(attention_mask)
        self._attention_mask[:count, length:padded_length] = 0
        return self._texts[bucket][padded_length]()[:count]
