"""Forwards with fixed shapes in fixed memory, as CUDA graphs require: one for each bucket of sizes.

A batch runs in the cheapest bucket that fits it, and results for the unused rows are discarded. The caller
decides how a forward is captured, so this module does not need a GPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch

from alignserve_server.model.encoder import CaptureFailed, DeviceLost, OutOfDeviceMemory
from alignserve_server.model.runtimes.device_errors import device_errors
from alignserve_server.model.runtimes.runtime import PreparedShape
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)

Forward: TypeAlias = Callable[[], torch.Tensor]
Capture: TypeAlias = Callable[[Forward], Forward]
Embed: TypeAlias = Callable[..., torch.Tensor]  # from the inputs of one modality to embeddings

_SHORTEST_TEXT = 8  # tokens; a GPU computes shorter ones no faster
# With fewer tokens, launching a text forward takes most of its time, so padding costs little.
_TOKENS_OF_A_FULL_FORWARD = 512


def image_batch_sizes(limit: int) -> list[int]:
    """Returns sizes up to the limit: each one up to 8, then even ones, then steps of at most an eighth."""
    sizes, size = [], 1
    while size < limit:
        sizes.append(size)
        size += 1 if size < 8 else max(2, _power_below(size) // 8)
    return [*sizes, limit]


def text_batch_sizes(limit: int, tokens: int) -> list[int]:
    """Returns sizes for texts of a length: they double until launches cost little, then grow by a quarter."""
    sizes, size = [], 1
    while size < limit:
        sizes.append(size)
        is_small = size * tokens < _TOKENS_OF_A_FULL_FORWARD
        size += size if is_small else max(1, _power_below(size) // 4)
    return [*sizes, limit]


def text_lengths(limit: int) -> list[int]:
    """Returns the powers of two from the shortest length that are below the limit, and the limit."""
    lengths, length = [], _SHORTEST_TEXT
    while length < limit:
        lengths.append(length)
        length *= 2
    return [*lengths, limit]


class StaticForwards(ABC):
    """The forwards of one modality, by shape. They share their inputs, so one runs at a time."""

    def __init__(self, embed: Embed, shapes: list[PreparedShape]) -> None:
        self._embed = embed
        self._wanted = sorted(shapes, key=_cost)
        self._forwards: dict[PreparedShape, Forward] = {}  # cheapest first

    @property
    def shapes(self) -> list[PreparedShape]:
        """The captured shapes, cheapest first."""
        return list(self._forwards)

    def capture(self, capture: Capture) -> None:
        """Captures every shape that fits into the device's memory.

        Raises:
            CaptureFailed: Capturing failed for another reason than memory.
            DeviceLost: The device failed.
        """
        captured = {}
        for shape in reversed(self._wanted):  # largest first: smaller ones reuse its memory
            forward = _captured(capture, partial(self._embed, *self._inputs(shape)), shape)
            if forward is not None:
                captured[shape] = forward
        self._forwards = dict(reversed(captured.items()))

    def drop(self, shape: PreparedShape) -> None:
        """Removes a shape; its batches run in a larger one, or without."""
        del self._forwards[shape]

    def _bucket(self, count: int, tokens: int = 0) -> PreparedShape | None:
        """Returns the cheapest captured shape that fits, or None if none does."""
        return next(
            (
                shape
                for shape in self._forwards
                if shape.batch_size >= count and (shape.tokens or 0) >= tokens
            ),
            None,
        )

    @abstractmethod
    def _inputs(self, shape: PreparedShape) -> tuple[torch.Tensor, ...]:
        """Returns the memory that a forward of a shape reads."""


class StaticImages(StaticForwards):
    """The forwards of images."""

    def __init__(
        self, embed: Embed, batch_size: int, image_size: tuple[int, int], device: torch.device
    ) -> None:
        """Allocates the inputs, for images of (height, width); `capture` adds the forwards."""
        super().__init__(embed, [PreparedShape(size) for size in image_batch_sizes(batch_size)])
        self._pixels = torch.zeros(batch_size, *image_size, 3, dtype=torch.uint8, device=device)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor | None:
        """Returns embeddings, which the next call overwrites, or None if no bucket fits."""
        count = len(pixels)
        shape = self._bucket(count)
        if shape is None:
            return None
        self._pixels[:count].copy_(pixels)
        return self._forwards[shape]()[:count]

    def _inputs(self, shape: PreparedShape) -> tuple[torch.Tensor, ...]:
        return (self._pixels[: shape.batch_size],)


class StaticTexts(StaticForwards):
    """The forwards of texts."""

    def __init__(self, embed: Embed, batch_size: int, text_tokens: int, device: torch.device) -> None:
        """Allocates the inputs, for texts of up to `text_tokens`; `capture` adds the forwards."""
        super().__init__(
            embed,
            [
                PreparedShape(size, tokens)
                for tokens in text_lengths(text_tokens)
                for size in text_batch_sizes(batch_size, tokens)
            ],
        )
        self._input_ids = torch.zeros(batch_size, text_tokens, dtype=torch.int64, device=device)
        self._attention_mask = torch.ones_like(self._input_ids)

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor | None:
        """Returns embeddings, which the next call overwrites, or None if no bucket fits."""
        count, length = input_ids.shape
        shape = self._bucket(count, length)
        if shape is None:
            return None
        # Unused rows keep texts of an earlier batch: rows do not affect each other, and a text of only
        # padding would give numbers that are not finite.
        self._input_ids[:count, :length].copy_(input_ids)
        self._attention_mask[:count, :length].copy_(attention_mask)
        self._attention_mask[:count, length : shape.tokens] = 0
        return self._forwards[shape]()[:count]

    def _inputs(self, shape: PreparedShape) -> tuple[torch.Tensor, ...]:
        size, tokens = shape
        return self._input_ids[:size, :tokens], self._attention_mask[:size, :tokens]


def _captured(capture: Capture, forward: Forward, shape: PreparedShape) -> Forward | None:
    """Returns the captured forward, or None if memory ran out."""
    try:
        with device_errors():
            return capture(forward)
    except OutOfDeviceMemory as error:
        _log.warning(
            "cuda_graph_too_large", batch_size=shape.batch_size, tokens=shape.tokens, reason=str(error)
        )
        return None
    except (CaptureFailed, DeviceLost):
        raise
    except Exception as error:  # Triton's errors are of its own types
        raise CaptureFailed(f"a CUDA graph for a batch of {shape.batch_size} failed: {error}") from error


def _cost(shape: PreparedShape) -> tuple[int, int]:
    """Returns a key that sorts shapes of one modality by the work of their forwards."""
    return shape.batch_size * (shape.tokens or 1), shape.batch_size


def _power_below(size: int) -> int:
    """Returns the largest power of two that is at most `size`."""
    return 1 << (size.bit_length() - 1)
