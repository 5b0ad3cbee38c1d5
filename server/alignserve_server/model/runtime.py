"""What runs the two networks of a checkpoint: the `Runtime` protocol, and how a runtime proves itself.

Every runtime is compared, when it is loaded, with the reference: transformers' own AlignModel on torch in
float32 on a CPU, on the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignserve_server.model.encoder import Embeddings, PixelValues, TokenizedText, l2_normalize

RuntimeName: TypeAlias = Literal["torch", "openvino"]
DtypeName: TypeAlias = Literal["float32", "bfloat16", "float16", "int8"]
TokenArray: TypeAlias = NDArray[np.int64]

_PROBE_TEXTS = (
    "cat",
    "a photo of a dog on a sofa",
    "an old map of the city, drawn by hand in ink on paper, with hills, two rivers and seven bridges",
)
_PROBE_GRIDS = (3, 24, 96)  # cells along a side: from soft gradients to fine texture


class Runtime(Protocol):
    """The networks of one checkpoint on one device. Safe to call from several lanes at once."""

    name: RuntimeName
    dtype: DtypeName
    device: str
    lanes: int  # batches that it runs at once
    has_parallel_lanes: bool  # false if lanes take turns at one device, and overlap only what is around it
    gpu_uuid: str | None  # NVIDIA's name of the GPU; None on a CPU

    @property
    def memory_bytes(self) -> int:
        """Memory that the networks hold on the device."""
        ...

    def enter_lane(self) -> None:
        """Prepares the calling thread, once, for the calls that it is going to make."""
        ...

    def release_memory(self) -> None:
        """Gives back what loading and measuring took and serving does not need; no call may be running."""
        ...

    def embed_pixels(self, pixels: NDArray[np.uint8]) -> Embeddings:
        """Embeds (batch, height, width, 3) pixels. Raises `OutOfDeviceMemory` or what the runtime raises."""
        ...

    def embed_tokens(self, input_ids: TokenArray, attention_mask: TokenArray) -> Embeddings:
        """Embeds (batch, length) tokens. Raises `OutOfDeviceMemory` or what the runtime raises."""
        ...


@dataclass(frozen=True, slots=True)
class Rescaling:
    """The affine map, per channel, from pixels to what the model reads: `pixels * scale + offset`."""

    scale: NDArray[np.float32]  # (3,)
    offset: NDArray[np.float32]  # (3,)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how a runtime computes."""

    device: str  # cpu or cuda:N
    dtype: DtypeName
    lanes: int | None = None  # None leaves it to the runtime
    threads_per_lane: int | None = None
    max_batch_size: int = 32
    max_text_tokens: int = 64
    cuda_graphs: bool = True


@dataclass(frozen=True, slots=True)
class Loaded:
    """A runtime with what else the weights tell."""

    runtime: Runtime
    reference: Embeddings  # of the probe, by the reference
    temperature: float
    embedding_dimension: int
    calibration: str = ""  # digest of what decided the ranges of int8


@dataclass(frozen=True, slots=True)
class Probe:
    """Inputs on which a runtime is compared with the reference."""

    pixels: NDArray[np.uint8]  # (images, height, width, 3)
    input_ids: TokenArray  # (texts, length)
    attention_mask: TokenArray

    @classmethod
    def of(
        cls, output_size: tuple[int, int], tokenize: Callable[..., TokenizedText], pad_token_id: int
    ) -> Probe:
        """Makes patterns of several scales, and texts of several lengths, padded to one."""
        texts = [tokenize(text, truncate=True) for text in _PROBE_TEXTS]
        return cls(_patterns(*output_size), *padded(texts, pad_token_id))

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of what the model reads."""
        _, height, width, _ = self.pixels.shape
        return height, width

    def embed(self, runtime: Runtime) -> Embeddings:
        """Returns what a runtime makes of the images, one by one, and of the texts together."""
        images = [runtime.embed_pixels(self.pixels[i : i + 1]) for i in range(len(self.pixels))]
        texts = runtime.embed_tokens(self.input_ids, self.attention_mask)
        return np.concatenate([*images, texts])


def min_cosine(embeddings: Embeddings, reference: Embeddings) -> float:
    """Returns the lowest cosine of any row with its counterpart; NaN if a number is not finite."""
    return float((l2_normalize(embeddings) * l2_normalize(reference)).sum(axis=1).min())


def padded(texts: Sequence[TokenizedText], pad_token_id: int) -> tuple[TokenArray, TokenArray]:
    """Returns input_ids and attention_mask, (texts, length of the longest)."""
    shape = len(texts), max(len(text.input_ids) for text in texts)
    input_ids = np.full(shape, pad_token_id, np.int64)
    attention_mask = np.zeros(shape, np.int64)
    for row, text in enumerate(texts):
        input_ids[row, : len(text.input_ids)] = text.input_ids
        attention_mask[row, : len(text.input_ids)] = 1
    return input_ids, attention_mask


def _patterns(height: int, width: int) -> PixelValues:
    random = np.random.default_rng(0)
    patterns = []
    for cells in _PROBE_GRIDS:
        grid = random.integers(0, 256, (cells, cells, 3), np.uint8)
        rows, columns = (np.arange(side) * cells // side for side in (height, width))
        patterns.append(grid[rows][:, columns])
    return np.stack(patterns)
